"""What a capture says, read from the specification and not with the package's parsers.

For every message of the wire: how it ended, when, and with which session. The
tests compare this with what the package tells.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast
from urllib.parse import parse_qs

from tests.replay.capture import Capture, Recorded

_LINE = re.compile(rb"\r\n|\n|\r")
CALLERS_FAULT = {"-32700", "-32600", "-32601", "-32602", "-32002"}
"""Codes with which a server blames its client."""


@dataclass(frozen=True)
class Answer:
    """One JSON-RPC message of the server."""

    message: dict[str, Any]
    at: float
    size: int
    """Bytes of its JSON."""


@dataclass
class Asked:
    """One request of the client, and everything that an observer can know of it."""

    exchange: Recorded
    method: str
    id: str | int
    target: str | None
    began: float
    transport_id: str | None
    """The session of the transport, where the wire names one."""
    client: str | None
    parent: str | None
    """Trace and span of ``_meta``."""
    error_type: str | None = None
    status_code: str | None = None
    ended: float | None = None
    """`None` = not by anything on the wire."""
    size: int | None = None
    version: str | None = None
    goes_on: bool = False
    """It brings input that an earlier result has asked for: no call of its own."""

    @property
    def name(self) -> str:
        return f"{self.method} {self.target}" if self.target else self.method

    @property
    def failed(self) -> bool:
        return self.error_type is not None or self.status_code is not None

    @property
    def refused(self) -> bool:
        """Whether the server did not take it; a probe that ends in an error asked for nothing."""
        probe = self.method == "server/discover" and self.failed
        return probe or self.exchange.status is None or self.exchange.status >= 400


@dataclass
class Reading:
    """A whole scenario."""

    requests: list[Asked]
    methods: list[str]
    """Of every message of the client, notifications included."""
    deleted: list[str]
    """Transport sessions that the client ended."""

    @property
    def client(self) -> str | None:
        """What the client calls itself."""
        return next((asked.client for asked in self.requests if asked.client is not None), None)


def answers_of(exchange: Recorded) -> list[Answer]:
    """Messages of the server in one answer."""
    body = b"".join(chunk.body for chunk in exchange.response)
    if exchange.streams:
        return _events(exchange, body)
    if exchange.response_header("content-type").startswith("application/json") and body:
        decoded = json.loads(body)
        at = exchange.response[-1].at
        entries = cast("list[dict[str, Any]]", decoded if isinstance(decoded, list) else [decoded])
        return [Answer(entry, at, len(body)) for entry in entries if "jsonrpc" in (entry or ())]
    return []


def _events(exchange: Recorded, body: bytes) -> list[Answer]:
    offsets = list(accumulate(len(chunk.body) for chunk in exchange.response))
    found: list[Answer] = []
    data: list[bytes] = []
    start, name = 0, b""
    for end in _LINE.finditer(body):
        line, start = body[start : end.start()], end.end()
        if line:
            key, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if key == b"data":
                data.append(value)
            elif key == b"event":
                name = value
            continue
        text = b"\n".join(data)
        if text and name in (b"", b"message"):
            # The event is there with the chunk that holds the first byte of the line end of its blank line.
            at = exchange.response[bisect_right(offsets, end.start())].at
            found.append(Answer(json.loads(text), at, len(text)))
        data, name = [], b""
    return found


def endpoint(exchange: Recorded) -> str | None:
    """The session that a stream of 2024-11-05 begins with."""
    body = b"".join(chunk.body for chunk in exchange.response)
    found = re.search(rb"event: ?endpoint[\r\n]+data: ?[^\r\n]*session_id=([0-9a-f-]+)", body)
    return found[1].decode() if found else None


def transport_id(exchange: Recorded) -> str | None:
    """The session that a request names."""
    if exchange.modern:
        return None
    if query := parse_qs(exchange.query).get("session_id"):
        return query[0]
    return exchange.header("mcp-session-id") or (endpoint(exchange) if exchange.method == "GET" else None)


def read(capture: Capture) -> Reading:
    """Read a scenario."""
    requests: list[Asked] = []
    methods: list[str] = []
    cancelled: list[tuple[str | None, Any, float]] = []
    for exchange in capture.exchanges:
        posted = exchange.message if exchange.method == "POST" else None
        for message in posted if isinstance(posted, list) else [posted]:
            if not isinstance(message, dict) or "method" not in message:
                continue
            methods.append(message["method"])
            if "id" in message:
                requests.append(_request(exchange, cast("dict[str, Any]", message)))
            elif message["method"] == "notifications/cancelled":
                cancelled.append((transport_id(exchange), message["params"]["requestId"], exchange.began))
    for asked in requests:
        _outcome(asked, capture)
        own = (asked.transport_id, asked.id)
        if asked.failed and any(
            (session, request_id) == own and at < (asked.ended or 0.0) for session, request_id, at in cancelled
        ):
            asked.error_type = "cancelled"
    _versions(requests)
    deleted = [
        exchange.header("mcp-session-id") or ""
        for exchange in capture.exchanges
        if exchange.method == "DELETE" and exchange.status is not None and exchange.status < 300
    ]
    return Reading(requests, methods, deleted)


def _request(exchange: Recorded, message: dict[str, Any]) -> Asked:
    params = message.get("params") or {}
    meta = params.get("_meta") or {}
    method = message["method"]
    target = params.get("name") if method in ("tools/call", "prompts/get") else None
    session = transport_id(exchange)
    if method == "initialize" and session is None and exchange.status == 200:
        session = exchange.response_header("mcp-session-id") or None
    info = params.get("clientInfo") if method == "initialize" else meta.get("io.modelcontextprotocol/clientInfo")
    parts = str(meta.get("traceparent", "")).split("-")
    parent = f"{parts[1]}-{parts[2]}" if len(parts) == 4 else None
    asked = Asked(
        exchange, method, message["id"], target, exchange.began, session, info["name"] if info else None, parent
    )
    asked.goes_on = "requestState" in params or "inputResponses" in params
    return asked


def _outcome(asked: Asked, capture: Capture) -> None:
    exchange = asked.exchange
    own = answers_of(exchange)
    for answer in own:
        if "method" not in answer.message and answer.message.get("id") == asked.id:
            return _answered(asked, answer)
    if exchange.status is not None and exchange.status >= 400:
        if own and "error" in own[0].message:
            return _answered(asked, own[0])
        asked.error_type, asked.ended = str(exchange.status), exchange.ended
        return None
    for stream in capture.exchanges:
        if stream.method == "GET" and asked.transport_id and transport_id(stream) == asked.transport_id:
            for answer in answers_of(stream):
                if "method" not in answer.message and answer.message.get("id") == asked.id and answer.at > asked.began:
                    return _answered(asked, answer)
    if exchange.modern:
        asked.error_type, asked.ended = "cancelled" if exchange.left is not None else "500", exchange.ended
    else:
        asked.error_type = "disconnected"
    return None


def _answered(asked: Asked, answer: Answer) -> None:
    asked.ended, asked.size = answer.at, answer.size
    if isinstance(problem := answer.message.get("error"), dict):
        asked.status_code = str(cast("dict[str, Any]", problem)["code"])
        asked.error_type = None if asked.status_code in CALLERS_FAULT else asked.status_code
    elif isinstance(value := answer.message.get("result"), dict):
        found = cast("dict[str, Any]", value)
        asked.error_type = "tool_error" if found.get("isError") is True else None
        if asked.method == "initialize":
            asked.version = found.get("protocolVersion")


def _versions(requests: list[Asked]) -> None:
    """The negotiated version holds for the whole session."""
    agreed = next((asked.version for asked in requests if asked.method == "initialize"), None)
    for asked in requests:
        if asked.exchange.modern:
            asked.version = asked.exchange.header("mcp-protocol-version")
        elif asked.method != "initialize":
            asked.version = agreed or asked.exchange.header("mcp-protocol-version")
