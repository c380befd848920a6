"""Made-up names and ids by the thousand, against servers that refuse them and servers that refuse nothing."""

from __future__ import annotations

import gc
import json
import os
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis

from otel_mcp import MCPMiddleware, guard
from otel_mcp.runtime import Runtime
from otel_mcp.settings import load
from otel_mcp.telemetry.catalogue import MAX_TOOLS
from otel_mcp.telemetry.labels import MAX_CLIENTS
from otel_mcp.types import ASGIApp, Message, Receive, Send
from otel_mcp.wire.jsonrpc import KNOWN_METHODS
from tests.support.answers import error, result
from tests.support.asgi import JSON_HEADERS, delete, get, make_scope, post, read, request, respond
from tests.support.messages import MODERN_HEADERS, ask, call, initialize, legacy_headers, modern
from tests.support.providers import Telemetry

KEYS_OF_ONE: Final = 4
"""Keys of a session: document, stats, what was agreed, and the successor of an id."""
CONSTANT: Final = 10
"""Keys of the service: hash key, deadlines, sweeper."""
BARE: Final = 2
"""Keys of a service that has no session: the hash key, and the processes that have ended."""
SERIES: Final = 8 * (2 * MAX_TOOLS + MAX_CLIENTS + len(KNOWN_METHODS))
"""More than one server has in all metrics, however it is called."""
MIB: Final = 1024 * 1024


async def anything(scope: Message, receive: Receive, send: Send) -> None:
    """Refuses nothing, and never fails."""
    message = json.loads(await read(receive) or b"{}")
    await respond(send, result(message["id"]) if "id" in message else b"", 200 if "id" in message else 202)


async def nothing(scope: Message, receive: Receive, send: Send) -> None:
    """Knows no session."""
    await read(receive)
    await respond(send, error(-32600, None), 404)


async def unauthorized(scope: Message, receive: Receive, send: Send) -> None:
    """Lets nobody in."""
    await read(receive)
    await respond(send, b"", 401)


async def unknown(scope: Message, receive: Receive, send: Send) -> None:
    """Has one tool, lists it, and knows no other name."""
    message = json.loads(await read(receive))
    name = message.get("params", {}).get("name")
    if message["method"] == "tools/list":
        await respond(send, result(message["id"], {"tools": [{"name": "add"}]}))
    elif message["method"] == "initialize" or name == "add":
        await respond(send, result(message["id"]))
    else:
        await respond(send, error(-32602, message["id"]))


async def echoing(scope: Message, receive: Receive, send: Send) -> None:
    """Fails with whatever code the client has made up."""
    message = json.loads(await read(receive))
    await respond(send, error(message["id"], message["id"]))


def jwt(subject: str) -> str:
    payload = urlsafe_b64encode(json.dumps({"iss": "i", "sub": subject}).encode()).decode().rstrip("=")
    return f"Bearer e30.{payload}.sig"


async def names(app: ASGIApp, number: int) -> None:
    """Every name that a client may make up, each of them new."""
    made_up = f"name-{number}"
    await post(app, modern(made_up, number, made_up), MODERN_HEADERS)
    await post(app, ask("prompts/get", number, name=made_up), legacy_headers("one"))
    await post(app, ask("resources/read", number, uri=f"file:///{made_up}"), legacy_headers("one"))
    await post(app, ask(made_up, number), legacy_headers("one"))
    await post(app, initialize(number, version=made_up, name=made_up))


async def labels(app: ASGIApp, number: int) -> None:
    """Everything that a client may vary and that a metric has an attribute for, each of it new."""
    made_up = f"{number}.{number}"
    headers = [("mcp-protocol-version", made_up), ("mcp-method", made_up), ("mcp-name", made_up)]
    for message in (
        call(made_up, number),
        modern(made_up, number, made_up),
        ask("prompts/get", number, name=made_up),
        ask(made_up, number),
        initialize(number, version=made_up, name=made_up),
    ):
        for added in ([], headers, legacy_headers("one", made_up)):
            scope = make_scope("POST", headers=[*JSON_HEADERS, ("x-org", made_up), *added])
            await request(
                app, {**scope, "http_version": f"{number // 10}.{number % 10}"}, [json.dumps(message).encode()]
            )


async def session_ids(app: ASGIApp, number: int) -> None:
    """A session id that nobody gave out, in every way to use one."""
    made_up = legacy_headers(f"made-up-{number}")
    await post(app, call(request_id=number), made_up)
    await delete(app, made_up)
    await get(app, made_up)


async def claims(app: ASGIApp, number: int) -> None:
    """Whatever else tells one client from another."""
    base = ("mcp-protocol-version", "2025-11-25")
    await post(app, call(meta={"openai/session": f"chat-{number}"}), [base])
    await post(app, call(), [base, ("baggage", f"session.id=agent-{number}")])
    await post(app, call(), [base, ("cookie", f"mcp_session=jar-{number}")])
    await post(app, call(), [base, ("x-session-id", f"x-{number}")])
    await post(app, call(), [base, ("x-forwarded-for", f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}")])
    await post(app, modern(), [*MODERN_HEADERS, ("authorization", f"Bearer token-{number}")])


async def credentials(app: ASGIApp, number: int) -> None:
    """Tokens that nobody issued."""
    headers = ("authorization", jwt(f"subject-{number}"))
    await post(app, modern(), [*MODERN_HEADERS, headers])
    await post(app, call(), [*legacy_headers(f"made-up-{number}"), headers])


@dataclass
class Left:
    """What a flood has left behind."""

    keys: int
    """In Redis."""
    series: int
    """Of all metrics."""
    held: int
    """Bytes by which the process had grown at its end, since a fifth of the way through it."""
    seconds: float
    """Of its second half in relation to its first one: 1 = the cost does not grow."""


async def flood(
    app: ASGIApp, send: Callable[[ASGIApp, int], Any], count: int, redis_url: str, *, limit: int = 600
) -> Left:
    """Send `count` of everything that `send` makes up; at most `limit` new sessions a minute."""
    telemetry = Telemetry()
    redis: Any = Redis.from_url(redis_url)
    redis.flushdb()
    runtime = Runtime(
        load(
            service_name="flood",
            redis_url=redis_url,
            max_new_sessions=limit,
            session_sources="conversation,header,cookie,inferred",
            trusted_proxies="127.0.0.0/8",
        ),
        meter_provider=telemetry.meter_provider,
    )
    watched = MCPMiddleware(app, runtime)
    early, middle, began = 0, 0.0, time.process_time()
    for number in range(count):
        await send(watched, number)
        if number == count // 5:
            early = _resident()
        if number == count // 2:
            middle = time.process_time()
    late, ended = _resident(), time.process_time()
    await runtime.shut_down()
    series = sum(len(metric.points) for metric in telemetry.metrics().values())
    keys = len(redis.keys("*"))  # Without those whose time is over.
    runtime.disable()
    telemetry.shut_down()
    redis.close()
    assert not guard.failures, guard.failures
    return Left(keys, series, late - early, (ended - middle) / max(middle - began, 1e-9))


def _resident() -> int:
    gc.collect()
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
