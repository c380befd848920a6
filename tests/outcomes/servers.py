"""The same shop on every library that this interpreter has: one tool works, the others fail, each in its own way."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

App = Any
Opened = Callable[[], AbstractAsyncContextManager[App]]
SCHEMA: Final = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
_LOW_LEVEL: Final = "mcp.server.lowlevel.server"
NAMES: Final = ("add", "crash", "validate", "refuse", "protest", "cached", "denied", "limited", "mended")
CODE: Final = -32001
"""What `protest` raises."""


class Model(BaseModel):
    """Fails where the user's own function makes one of the wrong data."""

    number: int


def major(package: str) -> int:
    """The major version that is installed; 0 = none."""
    with suppress(PackageNotFoundError):
        return int(version(package).partition(".")[0])
    return 0


def validate() -> int:
    return Model.model_validate({"number": "secret"}).number


def _protocol_error(code: int, message: str) -> Exception:
    if major("mcp") < 2:
        types = import_module("mcp.types")
        return import_module("mcp.shared.exceptions").McpError(types.ErrorData(code=code, message=message))
    return import_module("mcp.shared.exceptions").MCPError(code=code, message=message)


def _add_tools(server: Any, tool_error: type[Exception]) -> None:
    def add(a: int, b: int) -> int:
        return a + b

    async def crash() -> int:
        raise KeyError("secret")

    def refuse() -> int:
        raise tool_error("secret")

    async def protest() -> int:
        raise _protocol_error(CODE, "secret")

    for function in (add, crash, validate, refuse, protest):
        server.tool()(function)
    for name in NAMES[5:]:
        server.tool(name=name)(lambda: 1)

    def greet() -> str:
        return "hello"

    server.prompt()(greet)
    server.resource("shop://today")(greet)


@asynccontextmanager
async def _running(app: App) -> AsyncGenerator[App]:
    async with app.router.lifespan_context(app):
        yield app


def high_level(*, stateless: bool, as_json: bool, gzip: bool = False) -> AbstractAsyncContextManager[App]:
    """The high-level server of the SDK, 1.x or 2.x."""
    app = _high_level(stateless=stateless, as_json=as_json)
    if gzip:
        app.add_middleware(GZipMiddleware, minimum_size=1)
    return _running(app)


def _high_level(*, stateless: bool, as_json: bool) -> App:
    if major("mcp") < 2:
        module, errors = import_module("mcp.server.fastmcp"), import_module("mcp.server.fastmcp.exceptions")
        server = module.FastMCP("shop", stateless_http=stateless, json_response=as_json, log_level="CRITICAL")
        _add_tools(server, errors.ToolError)
        return server.streamable_http_app()
    module, errors = import_module("mcp.server.mcpserver"), import_module("mcp.server.mcpserver.exceptions")
    server = module.MCPServer("shop", log_level="CRITICAL")
    _add_tools(server, errors.ToolError)
    return server.streamable_http_app(stateless_http=stateless, json_response=as_json)


async def _serve(name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
    """What the low-level and hand-written servers do: the text of the result, and whether it says that it failed."""
    if name == "crash":
        raise KeyError("secret")
    if name == "validate":
        validate()
    if name == "protest":
        raise _protocol_error(CODE, "secret")
    return ("3", False) if name == "add" else ("no", True)


@asynccontextmanager
async def low_level(middleware: str = "") -> AsyncGenerator[App]:
    """The low-level server of the SDK, 1.x or 2.x, with a middleware of the user's on one side of the SDK's spans."""
    manager_of = import_module("mcp.server.streamable_http_manager").StreamableHTTPSessionManager
    server = (_low_level1 if major("mcp") < 2 else _low_level2)()
    if middleware:
        server.middleware.insert(0 if middleware == "outside" else len(server.middleware), _answer_messages)
    manager = manager_of(server, stateless=True, json_response=True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await manager.handle_request(scope, receive, send)

    async with manager.run():
        yield app


async def _answer_messages(ctx: Any, call_next: Any) -> Any:
    """Of the user's: answers messages by itself, refuses, and mends what failed."""
    name = (ctx.params or {}).get("name") if ctx.method == "tools/call" else None
    fine: dict[str, Any] = {"content": [{"type": "text", "text": "3"}], "resultType": "complete"}
    if name == "cached":
        return fine
    if name == "denied":
        return {**fine, "isError": True}
    if name == "limited":
        raise _protocol_error(-32029, "secret")
    if name == "mended":
        with suppress(Exception):
            await call_next(dataclasses.replace(ctx, params={**ctx.params, "name": "crash"}))
        return fine
    return await call_next(ctx)


def _low_level1() -> Any:
    types = import_module("mcp.types")
    server = import_module("mcp.server.lowlevel").Server("shop")

    @server.list_tools()
    async def listed() -> list[Any]:
        return [types.Tool(name=name, inputSchema=SCHEMA if name == "add" else {"type": "object"}) for name in NAMES]

    @server.call_tool()
    async def called(name: str, arguments: dict[str, Any]) -> Any:
        if name not in NAMES:
            raise ValueError("Unknown tool: secret")
        text, failed = await _serve(name, arguments)
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], isError=failed)

    return server


def _low_level2() -> Any:
    types = import_module("mcp_types")

    async def listed(*_: Any) -> Any:
        return types.ListToolsResult(
            tools=[types.Tool(name=n, input_schema=SCHEMA if n == "add" else {"type": "object"}) for n in NAMES],
            ttl_ms=0,
            cache_scope="private",
        )

    async def called(_: Any, params: Any) -> Any:
        _check(params.name, params.arguments or {})
        text, failed = await _serve(params.name, params.arguments or {})
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=failed)

    return import_module("mcp.server.lowlevel").Server("shop", on_list_tools=listed, on_call_tool=called)


def _check(name: str, arguments: Mapping[str, Any]) -> None:
    if name not in NAMES:
        raise _protocol_error(-32602, "Unknown tool: secret")
    if name == "add" and not all(isinstance(arguments.get(each), int) for each in "ab"):
        raise _protocol_error(-32602, "secret")


def fastmcp(kind: str) -> AbstractAsyncContextManager[App]:
    """FastMCP 3 or 4, with the middleware that `kind` names."""
    module, errors = import_module("fastmcp"), import_module("fastmcp.exceptions")
    server = module.FastMCP("shop")
    _add_tools(server, errors.ToolError)
    if kind == "caching":
        server.add_middleware(import_module("fastmcp.server.middleware.caching").ResponseCachingMiddleware())
    elif kind == "limiting":
        limiting = import_module("fastmcp.server.middleware.rate_limiting")
        server.add_middleware(limiting.RateLimitingMiddleware(max_requests_per_second=0.001, burst_capacity=1))
    elif kind == "answering":
        server.add_middleware(_answering(errors))
    elif kind == "messages":
        getattr(server, "_mcp_server").middleware.append(_answer_messages)  # noqa: B009
    elif kind == "retrying":
        server.add_middleware(_retrying())
    elif kind == "mounted":
        server, mounted = module.FastMCP("shop"), server
        server.mount(mounted)
    elif kind == "proxy":
        server = _proxy(server)
    return _running(server.http_app(stateless_http=True, json_response=True))


def _proxy(server: Any) -> Any:
    with suppress(ImportError, AttributeError):
        return import_module("fastmcp.server").create_proxy(server)
    return import_module("fastmcp").FastMCP.as_proxy(server)


def _retrying() -> Any:
    class Retrying(import_module("fastmcp.server.middleware").Middleware):
        """Of the user's: tries twice."""

        async def on_call_tool(self, context: Any, call_next: Any) -> Any:
            with suppress(Exception):
                return await call_next(context)
            return await call_next(context)

    return Retrying()


def _answering(errors: Any) -> Any:
    base = import_module("fastmcp.server.middleware").Middleware
    limited = import_module("fastmcp.server.middleware.rate_limiting").RateLimitError
    result = import_module("fastmcp.tools.tool" if major("fastmcp") < 3 else "fastmcp.tools.base").ToolResult

    class Answering(base):
        """Of the user's: answers by itself, refuses, and mends what failed."""

        async def on_call_tool(self, context: Any, call_next: Any) -> Any:
            if context.message.name == "cached":
                return result(content="3")
            if context.message.name == "denied":
                raise errors.ToolError("secret")
            if context.message.name == "limited":
                raise limited("secret")
            if context.message.name == "mended":
                with suppress(Exception):
                    context.message.name = "crash"
                    await call_next(context)
                return result(content="3")
            return await call_next(context)

    return Answering()


def handwritten(*, route: bool = True, gzip: bool = False) -> AbstractAsyncContextManager[App]:
    """A server without an SDK, behind a route or as bare ASGI, within a middleware that compresses."""

    async def endpoint(request: Request) -> JSONResponse:
        return await _answer(await request.json())

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        response = await _answer(json.loads(await Request(scope, receive).body()))
        await response(scope, receive, send)

    around = [Middleware(GZipMiddleware, minimum_size=1)] if gzip else []
    app: App = Starlette(routes=[Route("/mcp", endpoint, methods=["POST"])], middleware=around)
    if not route:
        app = import_module("otel_mcp").MCPMiddleware(GZipMiddleware(bare, 1) if gzip else bare)

    @asynccontextmanager
    async def opened() -> AsyncGenerator[App]:
        yield app

    return opened()


async def _answer(message: dict[str, Any]) -> JSONResponse:
    answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message.get("id")}
    params = message.get("params") or {}
    try:
        answer["result"] = await _result(message["method"], params)
    except (KeyError, ValidationError):
        answer["error"] = {"code": -32603, "message": "secret"}
    except Exception as error:
        answer["error"] = {"code": getattr(error, "code", 0) or error.args[0], "message": "secret"}
    return JSONResponse(answer)


async def _result(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        return {"protocolVersion": params["protocolVersion"], "capabilities": {}, "serverInfo": {"name": "shop"}}
    if method == "tools/list":
        return {"tools": [{"name": name, "inputSchema": SCHEMA} for name in NAMES]}
    if method == "tools/call":
        name, arguments = str(params.get("name")), params.get("arguments") or {}
        if name not in NAMES or (name == "add" and not all(isinstance(arguments.get(each), int) for each in "ab")):
            raise Exception(-32602)
        if name == "protest":
            raise Exception(CODE)
        text, failed = await _serve(name, arguments)
        return {"content": [{"type": "text", "text": text}], "isError": failed}
    if method == "prompts/get":
        raise Exception(-32602)
    if method == "resources/read":
        raise Exception(-32002)
    raise Exception(-32601)


_KINDS: Final = ("plain", "caching", "limiting", "answering", "retrying", "mounted", "proxy", "messages")


def servers() -> dict[str, Opened]:
    """What this interpreter can serve, by name."""
    found: dict[str, Opened] = {}
    if major("mcp"):
        sdk = f"sdk{major('mcp')}"
        found[f"{sdk}-high"] = lambda: high_level(stateless=True, as_json=True)
        found[f"{sdk}-high-sse"] = lambda: high_level(stateless=False, as_json=False)
        found[f"{sdk}-high-gzip"] = lambda: high_level(stateless=True, as_json=True, gzip=True)
        if major("mcp") >= 2 or "types.CallToolResult)" in inspect.getsource(
            import_module(_LOW_LEVEL).Server.call_tool
        ):
            found[f"{sdk}-low"] = low_level  # Before, a tool can only raise.
    if major("mcp") >= 2:
        found["sdk2-low-within"] = lambda: low_level("within")
        found["sdk2-low-outside"] = lambda: low_level("outside")
    if fast := major("fastmcp"):
        for kind in _KINDS[: 1 if fast < 3 else 7 if fast < 4 else 8]:
            found[f"fastmcp{fast}-{kind}"] = lambda kind=kind: fastmcp(kind)
    found["handwritten"] = handwritten
    found["handwritten-gzip"] = lambda: handwritten(gzip=True)
    found["bare"] = lambda: handwritten(route=False)
    return found
