"""Read session documents straight from Redis, without taking part in anything."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Final, cast

from pydantic import ValidationError

from otel_mcp.sessions.redis_client import connect
from otel_mcp.sessions.state import SessionState
from otel_mcp.settings import Settings

_MAX_SCANNED: Final = 100_000
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Reader:
    """Reads the sessions of one Redis."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prefix = f"{settings.redis_prefix}mcp_session:"

    async def one(self, session_id: str) -> SessionState | None:
        """One session, ``None`` where there is none."""
        client: Any = connect(self._settings.redis_url or "")
        try:
            return _parse(await client.get(self._prefix + session_id))
        finally:
            await client.aclose()

    async def newest(self, limit: int, service: str | None) -> list[SessionState]:
        """The sessions with the latest activity, newest first, of one service where given."""
        client: Any = connect(self._settings.redis_url or "")
        try:
            states: list[SessionState] = []
            scanned = 0
            async for key in client.scan_iter(match=_literal(self._prefix) + "*", count=500):
                state = _parse(await client.get(key))
                if state is not None and service in {None, state.service}:
                    states.append(state)
                scanned += 1
                if scanned >= _MAX_SCANNED:
                    break
        finally:
            await client.aclose()
        states.sort(key=lambda state: state.last_activity or _LONG_AGO, reverse=True)
        return states[:limit]


def _literal(prefix: str) -> str:
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in prefix)


def _parse(document: object) -> SessionState | None:
    try:
        return SessionState.model_validate_json(cast(bytes, document)) if document else None
    except ValidationError:
        return None
