"""Update the sessions of this process by what other processes have written and decided.

The answers to writes show some of it. For the rest, the store is asked once more in the
background, after other replicas have flushed.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final, Protocol
from weakref import WeakSet

from otel_mcp import loops
from otel_mcp.bounded import remember
from otel_mcp.guard import guarded, quietly
from otel_mcp.hashing import KeyedHashes
from otel_mcp.identity.principal import is_foreign, own_id
from otel_mcp.identity.registry import Registry
from otel_mcp.model.delta import Known, SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.session import Claim, Session
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings
from otel_mcp.types import Asker

_LOOK_AGAIN: Final = 2.0
"""Flush intervals after which other replicas have written what they knew."""
_MAX_UNSEEN: Final = 1000
_PAUSE: Final = 0.01
"""Seconds between two lookups of sessions."""


class Directory(Protocol):
    """The part of the shared store that identity uses; an `asker` limits the time of its answers."""

    async def describe(self, session_id: str, asker: Asker | None = None) -> Known | None: ...
    async def get(self, key: str, asker: Asker | None = None) -> str | None: ...
    async def get_or_set(self, key: str, candidate: str, ttl: float, asker: Asker | None = None) -> str: ...
    async def set_value(self, key: str, value: str, ttl: float) -> None: ...
    async def get_or_set_successor(
        self, old_id: str, candidate: str, user: str | None = None, asker: Asker | None = None
    ) -> str: ...


class Later:
    """Runs store lookups in the background; failures are counted."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    def run(self, question: Callable[[], Awaitable[None]], delay: float = 0.0) -> bool:
        """Run `question` after `delay` seconds; ``False`` = there is no loop to run it."""
        with guarded("session facts"):
            if (loop := loops.home()) is not None:
                self._ending.discard(loop)
                loops.call_later(loop, delay, partial(quietly, "session facts", partial(self._start, loop, question)))
                return True
        return False

    def close(self) -> None:
        """Cancel all questions of the running loop, which is about to end, and start no more there."""
        ending = asyncio.get_running_loop()
        self._ending.add(ending)
        for task in [task for task in self._tasks if task.get_loop() is ending]:
            task.cancel()

    def _start(self, loop: asyncio.AbstractEventLoop, question: Callable[[], Awaitable[None]]) -> None:
        if loop not in self._ending:
            task = loop.create_task(self._ask(question))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, question: Callable[[], Awaitable[None]]) -> None:
        with guarded("session facts"):
            await question()


class Reconciler:
    """Updates the sessions of this process from the store."""

    def __init__(self, settings: Settings, registry: Registry, directory: Directory, hashes: KeyedHashes) -> None:
        self._registry = registry
        self._directory = directory
        self._hashes = hashes
        self._delay = _LOOK_AGAIN * settings.flush_interval
        self._unseen: OrderedDict[str, tuple[float, Session, bool]] = OrderedDict()
        """Sessions to look up, by id: when (monotonic seconds), the session, and whether it is blind."""
        self._look_at = 0.0
        self.later = Later()

    def look_later(self, session: Session, *, blind: bool = False) -> None:
        """Look up a session that is new to this process, after other replicas have written what they knew.

        If it began without an answer of the store (`blind`), its id may have a successor.
        """
        due = time.monotonic() + self._delay
        remember(self._unseen, session.id, (due, session, blind), _MAX_UNSEEN)
        if time.monotonic() >= self._look_at:
            self._schedule(due)

    def _schedule(self, due: float) -> None:
        self._look_at = due
        self.later.run(self._look, max(due - time.monotonic(), 0.0))

    async def _look(self) -> None:
        """Look up one session at a time: after an outage, requests come first."""
        while self._unseen:
            session_id, (due, session, blind) = next(iter(self._unseen.items()))
            if (now := time.monotonic()) < due:
                return self._schedule(due)
            if (known := await self._directory.describe(session_id)) is None:
                return self._schedule(now + self._delay)
            self._unseen.pop(session_id, None)
            if blind and known.successor is not None:
                self._registry.follow(session_id, known.successor)
                session.ended = True
            else:
                learn(session, known)
            await asyncio.sleep(_PAUSE)

    def apply(self, delta: SessionDelta, result: WriteResult) -> SessionDelta | None:
        """Apply the store's answer to a write.

        Returns:
            The delta to write instead, if the session is another user's and a separate one may begin.
        """
        if result.owner is not None:
            return self._separate(delta, result.owner)
        session, previous = self._registry.sessions.get(result.session_id), delta.facts.previous_id
        if result.agreed_successor is not None and previous is not None:
            self._registry.follow(previous, result.agreed_successor)
            if session is not None:
                session.superseded = True
        is_over = result.after_end and delta.ended is None
        is_over = is_over and session is not None and (session.source == "header" or session.facts.lasting)
        if session is not None and session.conversation is None and (result.agreed_session is not None or is_over):
            session.ended = True  # So the next request that names it asks the store.
        return None

    def _separate(self, delta: SessionDelta, owner: str) -> SessionDelta | None:
        """Move a delta to a separate session of its caller: the store says that `owner` has the id."""
        registry, facts = self._registry, delta.facts
        registry.rejected("principal")
        session = registry.sessions.get(facts.session_id)
        if session is not None and session.facts is not facts:
            session = None  # Its own user's, which this process has learned since.
        if session is not None:
            session.ended = True
            # Remember the owner, in case the store does not answer next time.
            owned = registry.put(registry.draft(facts.session_id, session.source))
            owned.facts.principal = owner
            self.look_later(owned)
        if not delta.requests and not delta.call_count:
            return None
        caller = facts.principal or "" if session is None else session.caller
        mine = own_id(self._hashes, facts.session_id, caller)
        if (own := registry.get(mine)) is None:
            if (own := registry.begin(registry.draft(mine, facts.source or "header"))) is None:
                return None
            own.caller = caller
            own.facts = replace(facts, session_id=mine, previous_id=None, opened=False)
        if session is not None:
            session.conversation = own  # Later calls of the old one join it.
        return replace(delta, facts=own.facts, touch_key=None)


def learn(session: Session, known: Known) -> None:
    """Complete a session with the facts in the store, whose user may differ."""
    facts, has = session.facts, known.live.known() if known.live is not None else {}
    if known.live is not None and not facts.opened and known.live.principal != facts.principal:
        if known.live.principal is not None:
            # Two users used the id at once, and the other one was written first: writes of this one will be refused.
            session.ended = True
            return
        facts.principal = None
    complete(facts, {**known.client, **has})


def complete(facts: SessionFacts, known: Mapping[str, str]) -> None:
    """Set the facts that are missing, from `known`."""
    for name, value in known.items():
        if getattr(facts, name) is None:
            setattr(facts, name, value)


class Conversations:
    """Makes transport sessions part of conversations.

    ChatGPT opens a transport session for every call, but an operator wants to see
    one session for the conversation. So if a call names a conversation, and its
    transport session has made only a handshake, that becomes part of the
    conversation: it is not written, or ends as ``replaced`` if the store has it.
    A transport session with earlier tool calls stays a session.
    """

    def __init__(self, settings: Settings, registry: Registry, sessions: Sessions, later: Later) -> None:
        self._registry = registry
        self._sessions = sessions
        self._later = later
        # Seconds after which another replica has written a session that it held back.
        self._written = sessions.buffer.hold_time + 2 * settings.flush_interval

    def absorb(self, transport_id: str, conversation: Session, claim: Claim, *, owned: bool) -> None:
        """Make a call's transport session part of `conversation`, the session of its `claim`."""
        transport = self._registry.get(transport_id)
        if transport is conversation:
            return
        if transport is None:
            if not owned:
                self._later.run(partial(self._look, transport_id, conversation, claim, again=True))
        elif transport.conversation is not None:
            transport.conversation = conversation  # The latest one counts.
        elif not transport.tool_calls and not is_foreign(transport.facts, claim.principal):
            transport.conversation = conversation
            if not self._sessions.buffer.hand_over(transport_id, conversation.facts):
                self._replace(transport.facts, conversation)
            if not owned:
                # Any replica may get its next request.
                self._later.run(partial(self._agree, transport_id, conversation))

    def _replace(self, facts: SessionFacts, conversation: Session) -> None:
        if conversation.facts.previous_id is None and not conversation.facts.lasting:
            conversation.facts.previous_id = facts.session_id
        now = self._registry.clock()
        self._sessions.submit(SessionDelta(facts, now, ended=(now, "replaced")))

    async def _look(self, transport_id: str, conversation: Session, claim: Claim, *, again: bool) -> None:
        """End a transport session as ``replaced`` that another replica has written or is about to write."""
        known = await self._sessions.describe(transport_id)
        if known is None or known.ended or known.has_tool_calls:
            return
        if known.principal in (None, claim.principal.user):
            complete(conversation.facts, known.client)
        if known.live is None:
            if again:
                look = partial(self._look, transport_id, conversation, claim, again=False)
                self._later.run(look, self._written)
        elif not is_foreign(known.live, claim.principal) and not conversation.ended:
            self._replace(known.live, conversation)
            await self._agree(transport_id, conversation)

    async def _agree(self, transport_id: str, conversation: Session) -> None:
        user = conversation.facts.principal
        successor = await self._sessions.get_or_set_successor(transport_id, conversation.id, user)
        if self._registry.get(transport_id) is None:
            self._registry.follow(transport_id, successor)
