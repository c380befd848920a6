"""Conversations that go over many transport sessions, and what becomes of those.

ChatGPT opens a transport session for every call. An operator wants to see one
session: the conversation. A transport session that has done nothing but shake
hands when a call names a conversation is therefore part of that conversation:
it is never begun, or, if the store knows it already, it ends as ``replaced``.
One in which tools were called before is a session in its own right, and stays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from otel_mcp.identity.directory import Directory
from otel_mcp.identity.lookup import Tracker
from otel_mcp.identity.principal import is_foreign
from otel_mcp.model.delta import SessionDelta, SessionFacts
from otel_mcp.model.session import Principal, Session
from otel_mcp.sessions.service import Sessions


class Conversations:
    """Makes transport sessions part of conversations."""

    def __init__(
        self,
        tracker: Tracker,
        directory: Directory,
        sessions: Sessions,
        clock: Callable[[], float],
        flush_interval: float,
    ) -> None:
        self._tracker = tracker
        self._directory = directory
        self._sessions = sessions
        self._clock = clock
        # By then another replica has given up keeping it back, and has written it.
        self._written = sessions.buffer.hold_time + 2 * flush_interval

    def carried(self, transport_id: str, conversation: Session, principal: Principal | None, *, owned: bool) -> None:
        """A call over the transport session that is kept under `transport_id` belongs to `conversation`."""
        transport = self._tracker.get(transport_id)
        if transport is conversation:
            return
        if transport is None:
            if not owned:
                self._ask(transport_id, conversation, principal)
        elif transport.conversation is not None:
            transport.conversation = conversation  # The one that it spoke for last.
        elif not transport.has_tool_calls and not is_foreign(transport.facts, principal):
            transport.conversation = conversation
            if not self._sessions.buffer.hand_over(transport_id, conversation.facts):
                self._replace(transport.facts, conversation)
            if not owned:
                # Any replica may be asked about it next.
                self._tracker.later.run(partial(self._agree, transport_id, conversation))

    def _replace(self, facts: SessionFacts, conversation: Session) -> None:
        if conversation.facts.previous_id is None:
            conversation.facts.previous_id = facts.session_id
        now = self._clock()
        self._sessions.submit(SessionDelta(facts, now, ended=(now, "replaced")))

    def _ask(self, transport_id: str, conversation: Session, principal: Principal | None) -> None:
        """Another replica has shaken hands: replace what it wrote, or is about to write."""

        async def look(*, again: bool) -> None:
            known = await self._directory.describe(transport_id)
            if known is None or known.ended or known.worked:
                return
            if known.live is None:
                if again:
                    self._tracker.later.run(partial(look, again=False), self._written)
                return
            if not is_foreign(known.live, principal) and not conversation.ended:
                self._replace(known.live, conversation)
                await self._agree(transport_id, conversation)

        self._tracker.later.run(partial(look, again=True))

    async def _agree(self, transport_id: str, conversation: Session) -> None:
        user = conversation.facts.principal
        successor = await self._directory.get_or_set_successor(transport_id, conversation.id, user)
        if self._tracker.get(transport_id) is None:
            self._tracker.follow(transport_id, successor)
