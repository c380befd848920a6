"""A server that keeps its sessions in memory, and what its restart does to one of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from grafana.boards import contract, query

from .seen import Proof, Seen, eventually
from .stack import Stack

_VERSION: Final = "2025-11-25"
_FLUSHED: Final = 3.0
"""Seconds until a session is in the store, for sure."""


def restart_under(stack: Stack) -> None:
    """Begin a session, start its server again, be refused, and come back with another one.

    Raises:
        RuntimeError: the client was not refused.
    """
    server = stack.start_keeping()
    url = stack.keeping_url
    session = _begin(url)
    time.sleep(_FLUSHED)
    server.stop()
    stack.start_keeping()
    status, _ = _post(url, _call(), session)
    if status != 404:
        raise RuntimeError(f"a session of a server that was started again is answered {status}")
    _begin(url)


def _begin(url: str) -> str:
    about = {"protocolVersion": _VERSION, "capabilities": {}, "clientInfo": {"name": "patient", "version": "1.0"}}
    _, session = _post(url, {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}, "")
    _post(url, {"jsonrpc": "2.0", "method": "notifications/initialized"}, session)
    _post(url, _call(), session)
    return session


def _call() -> dict[str, Any]:
    wanted = {"name": "stock_level", "arguments": {"sku": "DESK-180"}}
    return {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": wanted}


def _post(url: str, message: dict[str, Any], session: str) -> tuple[int, str]:
    """Return the status, and the id of the session."""
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        **({"mcp-session-id": session, "mcp-protocol-version": _VERSION} if session else {}),
    }
    try:
        with urlopen(Request(url, json.dumps(message).encode(), headers), timeout=20) as response:
            response.read()
            return response.status, response.headers.get("mcp-session-id", session)
    except HTTPError as error:
        return error.code, session


def a_cut_session_is_back(seen: Seen) -> Iterator[str]:
    """The one session that a restart has cut is counted once, and so is its return."""
    for expr in (
        f'sum({contract.SESSION_INTERRUPTED.series}{{{query.CAUSE}="restart"}})',
        f'sum({contract.SESSION_RETURNED.series}{{{query.WITHIN}="1m"}})',
    ):

        def counted(expr: str = expr) -> list[float]:
            return [float(found["value"][1]) for found in seen.prometheus.query(expr)]

        if not eventually(lambda counted=counted: counted() == [1.0]):
            yield f"{expr}: {counted()}"


PROOFS: Final[dict[str, Proof]] = {"a session that a restart has cut is back": a_cut_session_is_back}
