"""The observer agent: asks a model about a session that struggles, once for each problem, within a budget.

Through the store, replicas agree on which of them asks, and share the budget of questions an hour. While the store is
away, each replica asks and counts by itself.
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
from otel_mcp.model.state import ADVICE, SessionState, ToolCall
from otel_mcp.model.verdict import went
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings

_MIN_FAILURES: Final = 3
"""Failed calls in this process from which on a session is examined."""
_PAUSE: Final = 5.0
"""Seconds between two examinations of a session."""
_MAX_SESSIONS: Final = 1000
"""Sessions that are remembered."""
_HOUR: Final = 3600.0
_CLAIM_TTL: Final = 86_400.0
"""Seconds for which replicas remember that a question has been asked."""
_MAX_ADVICE: Final = 4
"""Problems of a session for which its document keeps advice."""


def make(settings: Settings, sessions: Sessions) -> dict[str, Agent]:
    """Make the agent, by its name as an observer, if a model is configured and openai is installed."""
    if settings.agent_model is None:
        return {}
    if find_spec("openai") is None:
        logger.warning("otel_mcp: the observer agent needs the library openai (the extra `agent`)")
        return {}
    return {"agent": Agent(settings, sessions)}


class Agent:
    """An observer that asks a model what goes wrong in a session, and saves the answer in its document."""

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._model = settings.agent_model
        self._budget = settings.agent_calls
        self._content = settings.agent_content and settings.store_content
        self._sessions = sessions
        self._endpoint = Endpoint(settings)
        self._failing: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Number of failed calls of a session in this process, and the `monotonic` second of the next examination."""
        self._asked: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._given: OrderedDict[tuple[object, ...], tuple[float, Advice]] = OrderedDict()
        """Advice and its `monotonic` second, by `likeness`: for an hour, similar sessions get the same advice."""
        self._hour: int = 0
        self._used: int = 0
        """Questions of this hour that any replica is known to have asked."""

    def wants(self, call: CallRecord | ToolCall) -> bool:
        """Return whether a call failed, other than by its client leaving, and the agent may ask."""
        return went(call) == "failed" and self._may_ask()

    async def __call__(self, call: ToolCall, session: SessionState) -> None:
        """Examine the session's calls of all replicas now and then, while some fail."""
        now, session_id = time.monotonic(), session.session_id
        failed, due = self._failing.get(session_id, (0, now + _PAUSE))
        is_due = failed + 1 == _MIN_FAILURES or now >= due
        remember(self._failing, session_id, (failed + 1, now + _PAUSE if is_due else due), _MAX_SESSIONS)
        if not is_due or not self._may_ask():
            return
        state = await self._sessions.load(session_id)
        if state is not None and (problem := struggle(state)) is not None:
            await self.found(problem, state)

    async def found(self, pattern: str, session: SessionState) -> None:
        """Ask about a session that shows a pattern, unless a replica has asked.

        Raises:
            Exception: there was no answer, or an invalid one.
        """
        key = (session.session_id, pattern)
        if key in self._asked or not self._may_ask():
            return
        remember(self._asked, key, None, _MAX_SESSIONS)
        if await self._is_first(f"advice:{pattern}:{session.session_id}", _CLAIM_TTL):
            # Advice that may quote content must not go to another user's session.
            group = key if self._content else likeness(session, pattern)
            given, advice = self._given.get(group, (0.0, None))
            if advice is None or time.monotonic() - given > _HOUR:
                advice = await self._ask(question(session, pattern, content=self._content))
                if advice is None:
                    return
                remember(self._given, group, (time.monotonic(), advice), _MAX_SESSIONS)
            await self._write(session.session_id, pattern, advice)

    async def _ask(self, asked: Question) -> Advice | None:
        """Ask within the budget; an endpoint that does not support schemas is asked a second time without."""
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
        """Return whether the endpoint works, and this hour's budget is not used up as far as this process knows."""
        return not self._endpoint.is_paused and (self._used < self._budget or self._hour != int(time.time() // _HOUR))

    async def _take(self) -> bool:
        """Take one question of this hour's budget; ``False`` = none is left."""
        hour = int(time.time() // _HOUR)
        if hour != self._hour:
            self._hour, self._used = hour, 0
        while self._used < self._budget:
            self._used += 1
            if await self._is_first(f"advice-budget:{hour}:{self._used}", _HOUR):
                return True
        return False

    async def _is_first(self, key: str, ttl: float) -> bool:
        """Claim `key` for `ttl` seconds; return whether no replica had. Always true while the store is away."""
        token = secrets.token_urlsafe(16)
        return await self._sessions.get_or_set(key, token, ttl) == token

    async def _write(self, session_id: str, problem: str, advice: Advice) -> None:
        """Save advice in the document, by load and save like a user: a user's save in between may be lost."""
        state = await self._sessions.load(session_id)
        if state is None:
            return
        saved: Any = state.attributes.get(ADVICE)
        notes: dict[str, Any] = {**saved} if isinstance(saved, dict) else {}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        notes[problem] = {**advice.model_dump(exclude_none=True), "model": self._model, "at": now}
        state.attributes[ADVICE] = dict(list(notes.items())[-_MAX_ADVICE:])
        await self._sessions.save(state)
