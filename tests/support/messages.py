"""Messages of MCP as clients write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from otel_mcp.types import Message

CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"


MODERN: Final = "2026-07-28"


def call(tool: str = "add", request_id: object = 1, *, meta: Mapping[str, Any] | None = None, **params: Any) -> Message:
    """A ``tools/call`` request."""
    full: Message = {"name": tool, "arguments": {"a": 1}, **params}
    if meta is not None:
        full["_meta"] = dict(meta)
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": full}


def ask(method: str, request_id: object = 1, **params: Any) -> Message:
    """A request of any method."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def notify(method: str, **params: Any) -> Message:
    """A notification."""
    return {"jsonrpc": "2.0", "method": method, "params": params}


def initialize(request_id: object = 0, version: str = "2025-11-25", name: str = "unit-client") -> Message:
    """The first message of a legacy client."""
    return ask(
        "initialize",
        request_id,
        protocolVersion=version,
        capabilities={},
        clientInfo={"name": name, "version": "9"},
    )


def modern(tool: str = "add", request_id: object = 1, client: str = "unit-client", **meta: Any) -> Message:
    """A tool call of the revision of 2026-07-28."""
    return call(tool, request_id, meta={CLIENT_INFO: {"name": client, "version": "9"}, **meta})


MODERN_HEADERS: Final = (("mcp-protocol-version", MODERN), ("mcp-method", "tools/call"), ("mcp-name", "add"))


def legacy_headers(session_id: str, version: str = "2025-11-25") -> list[tuple[str, str]]:
    """What a legacy client sends after ``initialize``."""
    return [("mcp-session-id", session_id), ("mcp-protocol-version", version)]
