"""The tenant of a verified token is on metrics, spans, events and documents; no other token names one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fastmcp import FastMCP
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import MCPServer
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware

from otel_mcp import MCPInstrumentor, current, guard
from otel_mcp.types import ASGIApp
from tests.integration.test_users import ROUTES
from tests.support.asgi import JSON_HEADERS, Reply, post
from tests.support.messages import CLIENT_INFO as INFO
from tests.support.messages import MODERN, MODERN_HEADERS, call
from tests.support.providers import Telemetry
from tests.unit.identity.test_principal import jwt

pytestmark = pytest.mark.anyio

TOKENS = {"of-ann": ("ann", "acme"), "of-bob": ("bob", "acme"), "of-eve": ("eve", "umbrella"), "of-joe": ("joe", None)}
FORGED = jwt({"iss": "https://issuer.example", "sub": "ann", "org": "acme"})
TENANT = "otel_mcp.tenant"


class Verifier:
    async def verify_token(self, token: str) -> AccessToken | None:
        if token not in TOKENS:
            return None
        subject, org = TOKENS[token]
        claims = {"org": org} if org else None
        return AccessToken(token=token, client_id="app", scopes=[], subject=subject, claims=claims)


def of_the_sdk() -> Any:
    address: Any = "http://127.0.0.1:8000"
    auth = AuthSettings(issuer_url=address, resource_server_url=address)
    server = MCPServer("shop", token_verifier=Verifier(), auth=auth, log_level="ERROR")
    server.tool()(add)
    return server.streamable_http_app(stateless_http=True, json_response=True)


def of_fastmcp() -> Any:
    tokens = {token: {"client_id": "app", "sub": sub, "org": org} for token, (sub, org) in TOKENS.items()}
    server = FastMCP("shop", auth=StaticTokenVerifier(tokens=tokens))
    server.tool(add)
    return server.http_app(stateless_http=True, json_response=True)


def without_an_sdk() -> Any:
    backend: Any = BearerAuthBackend(Verifier())
    return Starlette(routes=ROUTES, middleware=[Middleware(AuthenticationMiddleware, backend=backend)])


def add(a: int, b: int) -> int:
    return a + b


async def ask(app: ASGIApp, token: str | None) -> Reply:
    """Call the tool with a token, as a client of 2026-07-28."""
    meta = {INFO: {"name": "unit", "version": "1"}, "io.modelcontextprotocol/protocolVersion": MODERN}
    meta["io.modelcontextprotocol/clientCapabilities"] = {}
    bearer = [("authorization", f"Bearer {token}")] if token is not None else []
    return await post(app, call(arguments={"a": 1, "b": 2}, meta=meta), [*JSON_HEADERS, *MODERN_HEADERS, *bearer])


@pytest.mark.parametrize("make", [of_the_sdk, of_fastmcp, without_an_sdk])
async def test_only_a_verified_token_names_the_tenant(make: Callable[[], Any]) -> None:
    telemetry = Telemetry()
    async with AsyncExitStack() as stack:
        stack.callback(telemetry.shut_down)
        stack.callback(MCPInstrumentor().uninstrument)
        MCPInstrumentor().instrument(
            tracer_provider=telemetry.tracer_provider,
            meter_provider=telemetry.meter_provider,
            logger_provider=telemetry.logger_provider,
            service_name="tenants",
            tenant="claim:org",
        )
        app = make()
        await stack.enter_async_context(app.router.lifespan_context(app))
        served = [(await ask(app, token)) for token in (*TOKENS, "of-ann", "of-eve")]
        refused = [(await ask(app, token)).status for token in (FORGED, "unknown", None)]

        assert [reply.status for reply in served] == [200] * 6
        is_open = make is without_an_sdk
        assert refused == ([200] * 3 if is_open else [401] * 3)
        strangers = 3 if is_open else 0
        expected = Counter({"acme": 3, "umbrella": 2, None: 1 + strangers})
        for name in ("otel_mcp.client.requests", "otel_mcp.tool.result.size"):
            points = telemetry.points(name)
            assert Counter({a.get(TENANT): v if isinstance(v, int) else v[0] for a, v in points}) == expected
        spans = [span.attributes or {} for span in telemetry.spans() if (span.attributes or {}).get("gen_ai.tool.name")]
        shown = Counter(attributes.get(TENANT) for attributes in spans if "error.type" not in attributes)
        assert shown == expected
        runtime = current.runtime
        assert runtime is not None
        await runtime.sessions.flush()
        began = [event["attributes"].get(TENANT) for event in telemetry.events() if event["name"] == "session.start"]
        assert {tenant for tenant in began if tenant} == {"acme", "umbrella"}
        states = [await runtime.sessions.load(reply.session_id or "") for reply in served]
        assert [state and state.tenant for state in states] == ["acme", "acme", "umbrella", None, "acme", "umbrella"]
        assert not guard.failures
