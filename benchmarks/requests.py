"""What the benchmarks ask of a server: requests as real clients send them."""

from __future__ import annotations

from typing import Final

from benchmarks.drive import ASGIApp, Request, call

_META: Final = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1.0"},'
    b'"io.modelcontextprotocol/clientCapabilities":{"sampling":{},"elicitation":{"form":{},"url":{}}},'
    b'"io.modelcontextprotocol/logLevel":"info"}'
)
_COMMON: Final = (
    (b"host", b"127.0.0.1:8000"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"user-agent", b"python-httpx2/2.16.2"),
    (b"accept", b"application/json, text/event-stream"),
)
_JSON: Final = (b"content-type", b"application/json")
_LEGACY_VERSION: Final = b"2025-11-25"


def health() -> Request:
    """A GET that is no MCP."""
    return Request("GET", "/health", (*_COMMON[:4], (b"accept", b"*/*")))


def api() -> Request:
    """A JSON POST that is no MCP, though only its body tells."""
    return Request("POST", "/api", (*_COMMON, _JSON), b'{"number":%d,"items":[1,2,3],"name":"somebody"}')


def modern(tool: str = "add", arguments: bytes = b'{"a":%d,"b":2}', *, progress: bool = False) -> Request:
    """A ``tools/call`` of the sessionless revision, as the SDK's client sends it."""
    headers = (
        *_COMMON,
        _JSON,
        (b"mcp-protocol-version", b"2026-07-28"),
        (b"mcp-method", b"tools/call"),
        (b"mcp-name", tool.encode()),
    )
    body = b'{"jsonrpc":"2.0","id":%%d,"method":"tools/call","params":{"name":"%b","arguments":%b,%b}}'
    meta = _META.replace(b'"_meta":{', b'"_meta":{"progressToken":1,') if progress else _META
    return Request("POST", "/mcp", headers, body % (tool.encode(), arguments, meta))


async def legacy(app: ASGIApp) -> Request:
    """A ``tools/call`` within a stateful session, which is opened through the app."""
    initialize = (
        b'{"jsonrpc":"2.0","id":%d,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
        b'"capabilities":{"sampling":{}},"clientInfo":{"name":"bench","version":"1.0"}}}'
    )
    opened, _ = await call(app, Request("POST", "/mcp", (*_COMMON, _JSON), initialize))
    session_id = opened.headers[b"mcp-session-id"]
    headers = (*_COMMON, _JSON, (b"mcp-session-id", session_id), (b"mcp-protocol-version", _LEGACY_VERSION))
    initialized = b'{"jsonrpc":"2.0","method":"notifications/initialized","params":{"n":%d}}'
    accepted, _ = await call(app, Request("POST", "/mcp", headers, initialized))
    assert accepted.status == 202, accepted.status
    body = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"add","arguments":{"a":%d,"b":2}}}'
    return Request("POST", "/mcp", headers, body)


async def of_scenario(app: ASGIApp, scenario: str) -> Request:
    """The request of a scenario, by its last words: the name of a revision, or what is special about it."""
    if scenario.endswith("2025-11-25"):
        return await legacy(app)
    if scenario == "GET, no MCP":
        return health()
    if scenario == "JSON POST, no MCP":
        return api()
    if scenario == "100 kB result":
        return modern("large", b"{}")
    if scenario == "100 progress events":
        return modern("steps", b"{}", progress=True)
    return modern()
