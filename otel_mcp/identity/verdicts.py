"""What the store answers about sessions that went on here, while other processes decided otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from otel_mcp.hashing import KeyedHashes
from otel_mcp.identity.lookup import Tracker
from otel_mcp.identity.principal import own_id
from otel_mcp.model.delta import SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.session import Session


class Verdicts:
    """Has the sessions of this process follow the store."""

    def __init__(self, tracker: Tracker, keys: KeyedHashes, rejected: Callable[[str], None]) -> None:
        self._tracker = tracker
        self._table = tracker.table
        self._keys = keys
        self._rejected = rejected

    def apply(self, delta: SessionDelta, result: WriteResult) -> SessionDelta | None:
        """Follow what the store has answered about a session; returns what is to be written instead, if anything."""
        if result.owner is not None:
            return self._put_out(delta, result.owner)
        agreed = result.agreed_session is not None or result.agreed_successor is not None
        if agreed or (result.after_end and delta.ended is None):
            self._overruled(delta, result)
        return None

    def _overruled(self, delta: SessionDelta, answer: WriteResult) -> None:
        """Other processes have decided otherwise about a session: what names it next is to be asked about."""
        session, previous = self._table.sessions.get(answer.session_id), delta.facts.previous_id
        if answer.agreed_successor is not None and previous is not None:
            self._tracker.follow(previous, answer.agreed_successor)
            if session is not None and not session.superseded:
                session.superseded = True
                self._keys.renew_claims()  # Some remember the session that they have led to.
        if session is None or session.conversation is not None:
            return
        if answer.agreed_session is not None or (answer.after_end and session.source == "header"):
            self._tracker.forget(session)

    def _put_out(self, delta: SessionDelta, owner: str) -> SessionDelta | None:
        """The store has the session as that of `owner`: what came under its id goes on in one of the caller's own.

        Returns:
            What is to be written instead; ``None`` where nothing is left to write, or no session may begin.
        """
        self._rejected("principal")
        facts = delta.facts
        session = self._table.sessions.get(facts.session_id)
        if session is not None and session.facts is not facts:
            session = None  # That of its own user, of which this process has learned since.
        if session is not None:
            self._tracker.forget(session)
            # The next user to name it is recognised even if the store cannot be asked.
            self._tracker.hold(facts.session_id, session.source, owner)
        if not delta.requests and not delta.call_count:
            return None
        own = self._own(facts, facts.principal or "" if session is None else session.caller)
        if own is None:
            return None
        if session is not None:
            session.conversation = own  # Calls may be under way in it.
        return replace(delta, facts=own.facts, touch_key=None)

    def _own(self, facts: SessionFacts, caller: str) -> Session | None:
        """The session of a caller's own, begun with what is known of the other; ``None`` beyond the limit."""
        mine = own_id(self._keys, facts.session_id, caller)
        if (own := self._tracker.get(mine)) is not None:
            return own
        own = self._table.admit(mine, facts.source or "header")
        if own is not None:
            own.caller = caller
            own.facts = replace(facts, session_id=mine, previous_id=None, opened=False)
        return own
