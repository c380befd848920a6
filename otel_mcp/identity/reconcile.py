"""What other processes know and decide about the sessions of this one, and how it follows them.

An answer to a write comes by itself. What another replica had not written yet
when it was asked for is asked for once more, in the background.
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
"""Flush intervals after which the store knows what other replicas knew at the time."""
_MAX_UNSEEN: Final = 1000
_PAUSE: Final = 0.01
"""Seconds between two questions about them."""


class Directory(Protocol):
    """The part of the shared store that identity asks, for an `asker` that waits within its patience."""

    async def describe(self, session_id: str, asker: Asker | None = None) -> Known | None: ...
    async def get(self, key: str, asker: Asker | None = None) -> str | None: ...
    async def get_or_set(self, key: str, candidate: str, ttl: float, asker: Asker | None = None) -> str: ...
    async def set_value(self, key: str, value: str, ttl: float) -> None: ...
    async def get_or_set_successor(
        self, old_id: str, candidate: str, user: str | None = None, asker: Asker | None = None
    ) -> str: ...


class Later:
    """Runs questions in the background; their failures are counted and harm nobody."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    def run(self, question: Callable[[], Awaitable[None]], delay: float = 0.0) -> bool:
        """Run `question` in `delay` seconds; ``False`` = there is no running loop, so nobody to wait for the answer."""
        with guarded("session facts"):
            if (loop := loops.home()) is not None:
                self._ending.discard(loop)
                loops.call_later(loop, delay, partial(quietly, "session facts", partial(self._start, loop, question)))
                return True
        return False

    def close(self) -> None:
        """Ask nothing more of what is due: the running loop is about to end, and a task that begins then never does."""
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
    """Has the sessions of this process follow the store."""

    def __init__(self, settings: Settings, registry: Registry, directory: Directory, hashes: KeyedHashes) -> None:
        self._registry = registry
        self._directory = directory
        self._hashes = hashes
        self._delay = _LOOK_AGAIN * settings.flush_interval
        self._unseen: OrderedDict[str, tuple[float, Session, bool]] = OrderedDict()
        """Sessions to ask about, from when on, and whether the store could not be asked when they began."""
        self._look_at = 0.0
        self.later = Later()

    def look_later(self, session: Session, *, blind: bool = False) -> None:
        """Ask about a session that has just been met, once other replicas have written what they knew of it.

        Where nobody could be asked about its id (`blind`), it may have been continued elsewhere.
        """
        due = time.monotonic() + self._delay
        remember(self._unseen, session.id, (due, session, blind), _MAX_UNSEEN)
        if time.monotonic() >= self._look_at:
            self._schedule(due)

    def _schedule(self, due: float) -> None:
        self._look_at = due
        self.later.run(self._look, max(due - time.monotonic(), 0.0))

    async def _look(self) -> None:
        """Ask one after another: after an outage requests come first."""
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
        """Follow what the store has answered about a session that went on here.

        Returns:
            What is to be written instead, where the session is another user's and another one may begin.
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
            session.ended = True  # What names it next is to be asked about.
        return None

    def _separate(self, delta: SessionDelta, owner: str) -> SessionDelta | None:
        """Move what came under the session of `owner`, by the store's word, to one of the caller's own."""
        registry, facts = self._registry, delta.facts
        registry.rejected("principal")
        session = registry.sessions.get(facts.session_id)
        if session is not None and session.facts is not facts:
            session = None  # That of its own user, of which this process has learned since.
        if session is not None:
            session.ended = True
            # The next user to name it is recognised even if the store cannot be asked.
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
            session.conversation = own  # Calls may be under way in it.
        return replace(delta, facts=own.facts, touch_key=None)


def learn(session: Session, known: Known) -> None:
    """Complete a session by what the store has of it; the users that they are bound to may differ."""
    facts, has = session.facts, known.live.known() if known.live is not None else {}
    if known.live is not None and not facts.opened and known.live.principal != facts.principal:
        if known.live.principal is not None:
            # Two met the id at once; the store has it from the other one first. What is under way here is refused.
            session.ended = True
            return
        facts.principal = None
    complete(facts, {**known.client, **has})


def complete(facts: SessionFacts, known: Mapping[str, str]) -> None:
    """Add what is known to facts that lack it."""
    for name, value in known.items():
        if getattr(facts, name) is None:
            setattr(facts, name, value)


class Conversations:
    """Makes transport sessions part of conversations.

    ChatGPT opens a transport session for every call. An operator wants to see one
    session: the conversation. A transport session that has done nothing but shake
    hands when a call names a conversation is therefore part of that conversation:
    it is never begun, or, if the store knows it already, it ends as ``replaced``.
    One in which tools were called before is a session in its own right, and stays.
    """

    def __init__(self, settings: Settings, registry: Registry, sessions: Sessions, later: Later) -> None:
        self._registry = registry
        self._sessions = sessions
        self._later = later
        # By then another replica has given up keeping it back, and has written it.
        self._written = sessions.buffer.hold_time + 2 * settings.flush_interval

    def absorb(self, transport_id: str, conversation: Session, claim: Claim, *, owned: bool) -> None:
        """Have `conversation`, which a call has named by `claim`, take in the transport session that it came on."""
        transport = self._registry.get(transport_id)
        if transport is conversation:
            return
        if transport is None:
            if not owned:
                self._later.run(partial(self._look, transport_id, conversation, claim, again=True))
        elif transport.conversation is not None:
            transport.conversation = conversation  # The one that it spoke for last.
        elif not transport.tool_calls and not is_foreign(transport.facts, claim.principal):
            transport.conversation = conversation
            if not self._sessions.buffer.hand_over(transport_id, conversation.facts):
                self._replace(transport.facts, conversation)
            if not owned:
                # Any replica may be asked about it next.
                self._later.run(partial(self._agree, transport_id, conversation))

    def _replace(self, facts: SessionFacts, conversation: Session) -> None:
        if conversation.facts.previous_id is None and not conversation.facts.lasting:
            conversation.facts.previous_id = facts.session_id
        now = self._registry.clock()
        self._sessions.submit(SessionDelta(facts, now, ended=(now, "replaced")))

    async def _look(self, transport_id: str, conversation: Session, claim: Claim, *, again: bool) -> None:
        """Replace the session that another replica has written, or is about to write, after a handshake."""
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
