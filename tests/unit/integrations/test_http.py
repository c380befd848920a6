"""Each patch runs the app exactly once, whether it is the first that a request passes or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import pytest

from otel_mcp import current
from otel_mcp.integrations import http
from otel_mcp.integrations.patching import Patches
from otel_mcp.model.call import SCOPE_KEY, Exchange
from otel_mcp.runtime import Runtime
from otel_mcp.types import Receive, Send
from tests.support.answers import Server
from tests.support.asgi import post
from tests.support.messages import MODERN_HEADERS, modern

pytestmark = pytest.mark.anyio


class App:
    """An ASGI app under any of the names that are patched; keeps the scopes that it was served with."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.session_manager = self
        self.stateless = True
        self._server = Server()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        await self._server(scope, receive, send)

    handle_request = __call__
    handle_post_message = __call__


def _module(name: str) -> tuple[ModuleType, Callable[..., Any]]:
    made = type(name, (App,), dict(App.__dict__))
    module = ModuleType(f"with_{name}")
    setattr(module, name, made)
    return module, made


PATCHES = {
    "Starlette": http.starlette,
    "Litestar": http.litestar,
    "StreamableHTTPASGIApp": http.session_manager,
    "SseServerTransport": http.sse_transport,
}
ENTRY = {"SseServerTransport": "handle_post_message"}


def _patched(name: str, patches: Patches) -> tuple[App, Callable[..., Any]]:
    module, made = _module(name)
    if name == "StreamableHTTPASGIApp":
        module.__dict__["StreamableHTTPSessionManager"] = type("Manager", (App,), dict(App.__dict__))
    PATCHES[name](module, patches)
    app: App = made()
    return app, getattr(app, ENTRY.get(name, "__call__"))


@pytest.mark.parametrize("name", PATCHES)
@pytest.mark.parametrize("switched_on", [True, False], ids=["observed", "switched off"])
async def test_the_first_patch_that_a_request_passes_serves_it_once(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, name: str, switched_on: bool
) -> None:
    monkeypatch.setattr(current, "build", lambda: runtime if switched_on else None)
    monkeypatch.setattr(current, "runtime", runtime if switched_on else None)
    app, entry = _patched(name, Patches())

    reply = await post(entry, modern(), MODERN_HEADERS)

    assert reply.status == 200
    assert [isinstance(scope.get(SCOPE_KEY), Exchange) for scope in app.scopes] == [switched_on]


@pytest.mark.parametrize("name", PATCHES)
async def test_patches_within_each_other_observe_a_request_once(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(current, "runtime", runtime)
    app, entry = _patched(name, Patches())

    reply = await post(http.ObservedApp(entry), modern(), MODERN_HEADERS)

    assert reply.status == 200
    assert len(app.scopes) == 1
    runtime.recorder.drain()
    assert runtime.sessions.local == 1


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_server_calls_what_others_put_around_a_patched_app(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    monkeypatch.setattr(current, "runtime", runtime)
    module, made = _module("Starlette")
    http.starlette(module, Patches())
    replaced: Callable[..., Any] = vars(made)["__call__"]
    passed: list[str] = []

    @wraps(replaced)
    async def around(self: App, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        passed.append(scope["path"])
        await replaced(self, scope, receive, send)

    if wrapped:
        monkeypatch.setattr(made, "__call__", around)
    app: Any = made()
    reply = await post(http.ObservedApp(app), modern("tools/call", name="add"), MODERN_HEADERS)

    assert reply.status == 200
    assert len(app.scopes) == 1
    assert isinstance(app.scopes[0][SCOPE_KEY], Exchange)
    assert passed == (["/mcp"] if wrapped else [])
