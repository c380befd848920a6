"""Reads the sessions out of Redis, as any program could that knows the key and the JSON.

Documents expire, so a watcher looks every quarter of a second and remembers the last version of
each. It reads on a connection of its own and writes nothing.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Any, Final, cast

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

KEY_PREFIX: Final = "mcp_session:"
_INTERVAL: Final = 0.25


class ToolCallDocument(BaseModel):
    """One tool call within a session document; `duration` is in seconds."""

    model_config = ConfigDict(extra="allow")

    tool_name: str
    request_id: str | int | None = None
    started_at: datetime
    duration: float | None = None
    error_type: str | None = None
    result_bytes: int | None = None
    trace_id: str | None = None
    span_id: str | None = None
    rounds: int = 1


class EndDocument(BaseModel):
    """When and why a session ended."""

    at: datetime
    reason: str


class SessionDocument(BaseModel):
    """What stands at `mcp_session:<id>`; the fields without a default are promised."""

    model_config = ConfigDict(extra="allow")

    session_id: str
    user_agent: str | None
    created_at: datetime
    last_activity: datetime
    tool_calls: list[ToolCallDocument]
    tool_call_count: int
    error_count: int
    request_count: int
    client_name: str | None = None
    client_version: str | None = None
    protocol_version: str | None = None
    source: str | None = None
    ended: EndDocument | None = None


@dataclass(frozen=True)
class SeenSession:
    """The last version of a document, with the seconds it had left; None once it is gone."""

    document: SessionDocument
    text: str
    expires_in: int | None

    @property
    def session_id(self) -> str:
        """The id that the document stands under."""
        return self.document.session_id


class SessionWatcher:
    """Watch the session documents of one Redis from a background thread."""

    def __init__(self, redis_url: str) -> None:
        # redis-py types every answer for its synchronous and its asyncio client at once.
        self._redis = cast("Any", redis.Redis).from_url(redis_url, decode_responses=True)
        self._seen: dict[str, SeenSession] = {}
        self._malformed: set[str] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SessionWatcher:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._redis.close()

    def sessions(self) -> list[SeenSession]:
        """Return every session seen so far, the oldest first."""
        with self._lock:
            seen = list(self._seen.values())
        return sorted(seen, key=lambda session: session.document.created_at)

    def malformed(self) -> list[str]:
        """Return the keys whose value was no session document."""
        with self._lock:
            return sorted(self._malformed)

    def _watch(self) -> None:
        while not self._stopped.wait(_INTERVAL):
            with suppress(redis.ConnectionError):
                self._look()

    def _look(self) -> None:
        present: dict[str, SeenSession] = {}
        malformed: set[str] = set()
        for key in self._redis.scan_iter(match=f"{KEY_PREFIX}*", count=1000):
            text, expires_in = self._redis.get(key), self._redis.ttl(key)
            if text is None:
                continue
            try:
                document = SessionDocument.model_validate_json(text)
            except ValidationError:
                malformed.add(key)
            else:
                present[key] = SeenSession(document, text, expires_in)
        with self._lock:
            gone = {key: replace(session, expires_in=None) for key, session in self._seen.items() if key not in present}
            self._seen = gone | present
            self._malformed |= malformed
