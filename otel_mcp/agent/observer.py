"""When the observer agent asks: about a session that struggles, once for each of its problems, within a budget.

A question is asked by one replica: the store agrees on which. So is the budget, a number of places an hour
for all replicas of the service; while the store is away, each has its own.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any, Final

from otel_mcp.agent.endpoint import Endpoint, SchemaRefused
from otel_mcp.agent.question import Advice, Question, likeness, question, read, struggle
from otel_mcp.bounded import remember
from otel_mcp.guard import logger
from otel_mcp.model.delta import CallRecord
from otel_mcp.model.outcomes import LEFT
from otel_mcp.model.state import ADVICE, SessionState, ToolCall
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings

_LOOK_AT: Final = 3
_LOOK_AGAIN: Final = 5.0
"""A session is looked at when so many of its calls have failed here, and at calls that fail so many seconds later."""
_SESSIONS: Final = 1000
"""Sessions that are remembered as looked at."""
_HOUR: Final = 3600.0
_ASKED: Final = 86_400.0
"""Seconds for which replicas agree that a question has been asked."""
_NOTES: Final = 4
"""Problems of one session that its document has advice for."""


def make(settings: Settings, sessions: Sessions) -> dict[str, Agent]:
    """Make the agent, by the name that it observes under, where a model is configured and the library is there."""
    if settings.agent_model is None:
        return {}
    if find_spec("openai") is None:
        logger.warning("otel_mcp: the observer agent needs the library openai (the extra `agent`)")
        return {}
    return {"agent": Agent(settings, sessions)}


class Agent:
    """An observer that asks a model what goes wrong in a session, and leaves the answer in its document."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._model = settings.agent_model
        self._most = settings.agent_calls
        self._content = settings.agent_content and settings.store_content
        self._sessions = sessions
        self._endpoint = Endpoint(settings)
        self._failing: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Sessions with calls that failed: how many here, and when to look again."""
        self._asked: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._given: OrderedDict[tuple[object, ...], tuple[float, Advice]] = OrderedDict()
        """What was said of a session, and when: for an hour it is said of all that are like it."""
        self._hour: int = 0
        self._taken: int = 0
        """Places of this hour that are known to be taken, by any replica."""

    def wants(self, call: CallRecord | ToolCall) -> bool:
        """Look whether a call failed, other than by its client's leaving: only then may its session struggle."""
        failed = call.failure is not None or call.error_type is not None
        return failed and call.failure != "cancelled" and call.error_type not in LEFT and self._may_ask()

    async def __call__(self, call: ToolCall, session: SessionState) -> None:
        """Look now and then at the calls of a session, of all replicas, while some of them fail."""
        now, session_id = time.monotonic(), session.session_id
        failed, at = self._failing.get(session_id, (0, now + _LOOK_AGAIN))
        looks = failed + 1 == _LOOK_AT or now >= at
        remember(self._failing, session_id, (failed + 1, now + _LOOK_AGAIN if looks else at), _SESSIONS)
        if not looks or not self._may_ask():
            return
        state = await self._sessions.load(session_id)
        if state is not None and (problem := struggle(state)) is not None:
            await self.found(problem, state)

    async def found(self, pattern: str, session: SessionState) -> None:
        """Ask about a session that shows a pattern, unless somebody has.

        Raises:
            Exception: there was no answer, or none to the question.
        """
        key = (session.session_id, pattern)
        if key in self._asked or not self._may_ask():
            return
        remember(self._asked, key, None, _SESSIONS)
        if await self._is_first(f"advice:{pattern}:{session.session_id}", _ASKED):
            # What was said of contents must not stand with another user's session.
            like = key if self._content else likeness(session, pattern)
            at, advice = self._given.get(like, (0.0, None))
            if advice is None or time.monotonic() - at > _HOUR:
                advice = await self._ask(question(session, pattern, content=self._content))
                if advice is None:
                    return
                remember(self._given, like, (time.monotonic(), advice), _SESSIONS)
            await self._write(session.session_id, pattern, advice)

    async def _ask(self, asked: Question) -> Advice | None:
        """Ask within the budget; an endpoint that knows no schemas is asked twice, once in a process's life."""
        for _ in range(2):
            if not await self._take():
                break
            with suppress(SchemaRefused):
                text = await self._endpoint.ask(asked)
                try:
                    return read(text, asked.tools)
                except ValueError:
                    self._endpoint.refuse()
                    raise
        return None

    def _may_ask(self) -> bool:
        """Look whether anything is left of this hour's budget, as far as is known here, and the endpoint works."""
        return not self._endpoint.is_paused and (self._taken < self._most or self._hour != int(time.time() // _HOUR))

    async def _take(self) -> bool:
        """Take a place of this hour's budget; ``False`` where none is left."""
        hour = int(time.time() // _HOUR)
        if hour != self._hour:
            self._hour, self._taken = hour, 0
        while self._taken < self._most:
            self._taken += 1
            if await self._is_first(f"advice-budget:{hour}:{self._taken}", _HOUR):
                return True
        return False

    async def _is_first(self, key: str, ttl: float) -> bool:
        """Return whether no replica has claimed this before; each decides alone while the store is away."""
        ours = secrets.token_urlsafe(16)
        return await self._sessions.get_or_set(key, ours, ttl) == ours

    async def _write(self, session_id: str, problem: str, advice: Advice) -> None:
        """Put advice into the document, as its user would: what they save in the same instant may be lost."""
        state = await self._sessions.load(session_id)
        if state is None:
            return
        kept: Any = state.attributes.get(ADVICE)
        notes: dict[str, Any] = {**kept} if isinstance(kept, dict) else {}
        at = datetime.now(UTC).isoformat(timespec="seconds")
        notes[problem] = {**advice.model_dump(exclude_none=True), "model": self._model, "at": at}
        state.attributes[ADVICE] = dict(list(notes.items())[-_NOTES:])
        await self._sessions.save(state)
