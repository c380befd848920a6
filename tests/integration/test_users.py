"""Users that the app authenticates own their sessions, wherever on the way of a request that happens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Request
from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend
from mcp.server.auth.provider import AccessToken
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from otel_mcp import MCPInstrumentor, MCPMiddleware, guard
from otel_mcp.types import ASGIApp, Message, Receive, Send
from tests.support.answers import Server
from tests.support.asgi import Reply, delete, get, post
from tests.support.messages import MODERN_HEADERS, call, initialize, legacy_headers, modern
from tests.support.providers import Telemetry

pytestmark = pytest.mark.anyio
TOKENS = {"Bearer token-of-ann": "ann", "Bearer renewed-of-ann": "ann", "Bearer token-of-bob": "bob"}
ANN, RENEWED, BOB, NOBODY = ([("authorization", token)] for token in (*TOKENS, "Bearer unknown"))


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry()
    MCPInstrumentor().instrument(
        tracer_provider=made.tracer_provider,
        meter_provider=made.meter_provider,
        logger_provider=made.logger_provider,
        service_name="users",
        audit="events",
        audit_caller="claim:sub",
    )
    guard.failures.clear()
    yield made
    assert not guard.failures
    MCPInstrumentor().uninstrument()
    made.shut_down()


def named(connection: HTTPConnection) -> str | None:
    return TOKENS.get(connection.headers.get("authorization", ""))


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = named(conn)
        return (AuthCredentials(), SimpleUser(name)) if name else None


class Verifier:
    async def verify_token(self, token: str) -> AccessToken | None:
        name = TOKENS.get(f"Bearer {token}")
        return AccessToken(token=token, client_id="client", scopes=[], subject=name) if name else None


async def serve(request: Request) -> Response:
    """A server without an SDK and without sessions."""
    message = json.loads(await request.body() or b"{}")
    if request.method == "GET":
        return Response(b"", media_type="text/event-stream")
    if "id" not in message:
        return Response(status_code=202)
    result: Message = {"content": []}
    if message["method"] == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {}}
    return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "result": result})


METHODS = ["POST", "GET", "DELETE"]
ROUTES = [Route("/mcp", serve, methods=METHODS)]


class Endpoint(HTTPEndpoint):
    async def dispatch(self) -> None:
        request = Request(self.scope, self.receive)
        await (await serve(request))(self.scope, self.receive, self.send)


def starlette() -> ASGIApp:
    return Starlette(routes=ROUTES, middleware=[Middleware(AuthenticationMiddleware, backend=Backend())])


def mounted() -> ASGIApp:
    inner = Starlette(routes=ROUTES, middleware=[Middleware(AuthenticationMiddleware, backend=Backend())])
    return Starlette(routes=[Mount("/", app=inner)])


def endpoint() -> ASGIApp:
    middleware = [Middleware(AuthenticationMiddleware, backend=Backend())]
    return Starlette(routes=[Route("/mcp", Endpoint)], middleware=middleware)


def around_the_route() -> ASGIApp:
    middleware = [Middleware(AuthenticationMiddleware, backend=Backend())]
    return Starlette(routes=[Route("/mcp", serve, methods=METHODS, middleware=middleware)])


def of_the_sdk() -> ASGIApp:
    backend: Any = BearerAuthBackend(Verifier())
    return Starlette(
        routes=ROUTES,
        middleware=[Middleware(AuthenticationMiddleware, backend=backend), Middleware(AuthContextMiddleware)],
    )


def base_middleware() -> ASGIApp:
    async def dispatch(request: Request, call_next: Any) -> Response:
        request.scope["user"] = SimpleUser(name) if (name := named(request)) else None
        return await call_next(request)

    return Starlette(routes=ROUTES, middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)])


def dependency() -> ASGIApp:
    async def user(request: Request) -> None:
        if name := named(request):
            request.scope["user"] = SimpleUser(name)

    app = FastAPI()
    app.add_api_route("/mcp", serve, methods=METHODS, dependencies=[Depends(user)])
    return app


def _authenticating(app: ASGIApp, *, copy: bool) -> ASGIApp:
    async def authenticated(scope: Message, receive: Receive, send: Send) -> None:
        scope = dict(scope) if copy else scope
        if scope["type"] == "http" and (name := named(HTTPConnection(scope))):
            scope["user"] = SimpleUser(name)
        await app(scope, receive, send)

    return authenticated


def bare() -> ASGIApp:
    return MCPMiddleware(_authenticating(Server(), copy=False))


def copying() -> ASGIApp:
    return MCPMiddleware(_authenticating(Starlette(routes=ROUTES), copy=True))


def copying_twice() -> ASGIApp:
    return MCPMiddleware(_authenticating(_authenticating(MCPMiddleware(Server()), copy=True), copy=True))


APPS = [
    starlette, mounted, endpoint, around_the_route, of_the_sdk, base_middleware, dependency, bare, copying,
    copying_twice,
]  # fmt: skip


async def begun(app: ASGIApp, who: list[tuple[str, str]]) -> str:
    """The id that a client gets at its first message."""
    return (await post(app, initialize(), who)).headers["mcp-session-id"]


def sessions(telemetry: Telemetry) -> list[Any]:
    """The session of each call, in their order."""
    calls = [dict(span.attributes or {}) for span in telemetry.spans() if "mcp.method.name" in (span.attributes or {})]
    return [attributes.get("session.id") for attributes in calls]


@pytest.mark.parametrize("make", APPS)
async def test_a_session_belongs_to_the_user_that_the_app_has_authenticated(
    make: Callable[[], ASGIApp], telemetry: Telemetry
) -> None:
    app = make()
    await begun(app, ANN)  # From the second one on, an app is known to be one without an SDK.
    session_id = await begun(app, ANN)
    telemetry.spans()
    telemetry.span_exporter.clear()

    callers: list[list[tuple[str, str]]] = [ANN, BOB, NOBODY, [], RENEWED]
    shown = [(await post(app, call(), [*legacy_headers(session_id), *who])).session_id for who in callers]

    found = sessions(telemetry)
    assert [one == session_id for one in found] == [True, False, False, False, True]
    assert found[1] not in found[2:]
    assert shown == found


@pytest.mark.parametrize("make", APPS)
async def test_users_are_distinguished_where_no_id_is_sent(make: Callable[[], ASGIApp], telemetry: Telemetry) -> None:
    app = make()
    for who in (ANN, BOB, RENEWED):
        await post(app, modern(), [*MODERN_HEADERS, *who])
    telemetry.spans()
    telemetry.span_exporter.clear()

    for who in (ANN, BOB, RENEWED):
        await post(app, modern(), [*MODERN_HEADERS, *who])

    first, second, third = sessions(telemetry)
    assert first == third != second


@pytest.mark.parametrize("make", APPS)
async def test_a_record_names_the_user_that_the_app_has_authenticated(
    make: Callable[[], ASGIApp], telemetry: Telemetry
) -> None:
    app = make()
    for who in (ANN, BOB, RENEWED, NOBODY, []):
        await post(app, modern(), [*MODERN_HEADERS, *who])
    telemetry.metrics()

    calls = [event["attributes"] for event in telemetry.events() if event["name"] == "otel_mcp.tool.call"]
    ann, bob, renewed, unknown, nobody = (
        {name: value for name, value in call.items() if name.startswith("enduser.")} for call in calls
    )
    assert ann == renewed != bob
    assert (len(unknown), nobody) == (1, {})
    assert set(unknown) == {"enduser.pseudo.id"}
    verified = make is of_the_sdk  # Only there is a token with claims.
    assert (ann, bob) == ({"enduser.id": "ann"}, {"enduser.id": "bob"}) if verified else set(ann) == set(unknown)


def _answers(reply: Reply) -> str | None:
    return reply.headers.get("x-session-id")


@pytest.mark.parametrize("make", APPS)
async def test_an_answer_shows_only_the_session_of_its_own_caller(
    make: Callable[[], ASGIApp], telemetry: Telemetry
) -> None:
    app = make()
    await begun(app, ANN)
    session_id = await begun(app, ANN)
    await post(app, call(), [*legacy_headers(session_id), *ANN])
    notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}

    for who, mine in ((BOB, False), (NOBODY, False), (ANN, True)):
        headers = [*legacy_headers(session_id), *who]
        for reply in (
            await post(app, notification, headers),
            await get(app, headers),
            await post(app, call(), headers),
            await delete(app, headers),
        ):
            if reply.status < 400:
                assert (_answers(reply) == session_id) is mine
            assert mine or _answers(reply) != session_id
