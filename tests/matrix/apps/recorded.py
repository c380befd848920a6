"""The app that APP names, with every exchange written to the file that RECORD names, as it passes."""

import json
import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

inner = import_module(os.environ["APP"]).app
record = Path(os.environ["RECORD"])
began = time.monotonic()
exchanges: list[dict[str, Any]] = []


def _now() -> float:
    return round(time.monotonic() - began, 4)


def _pairs(headers: Any) -> list[list[str]]:
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]


def _chunk(message: dict[str, Any]) -> dict[str, Any]:
    body = message.get("body", b"")
    return {"t": _now(), "size": len(body), "text": body.decode(), "more": message.get("more_body", False)}


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        await inner(scope, receive, send)
        return
    exchange: dict[str, Any] = {
        "n": len(exchanges) + 1,
        "t": _now(),
        "client": list(scope["client"]),
        "http": scope["http_version"],
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "req_headers": _pairs(scope["headers"]),
        "req_chunks": [],
        "status": None,
        "resp_headers": None,
        "resp_chunks": [],
        "disconnect_t": None,
        "end_t": None,
    }
    exchanges.append(exchange)
    starts = 0

    async def received() -> Any:
        message = await receive()
        if message["type"] == "http.request":
            exchange["req_chunks"].append(_chunk(message))
        elif exchange["disconnect_t"] is None:
            exchange["disconnect_t"] = _now()
        return message

    async def sent(message: Any) -> None:
        nonlocal starts
        starts += message["type"] == "http.response.start"
        if starts == 1 and message["type"] == "http.response.start":
            exchange["status"], exchange["resp_headers"] = message["status"], _pairs(message["headers"])
        elif starts == 1:
            exchange["resp_chunks"].append(_chunk(message))
        await send(message)

    try:
        await inner(scope, received, sent)
    finally:
        exchange["end_t"] = _now()
        ended = [each for each in exchanges if each["end_t"] is not None]
        record.write_text(json.dumps({"exchanges": ended}))  # noqa: ASYNC240 (it records, and does nothing else)
