"""The little of MCP that a hand-written server needs."""

from typing import Any

from opentelemetry import _logs, trace

tracer, logger = trace.get_tracer("app"), _logs.get_logger("app")
NEWEST = "2025-11-25"
TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("add", "fail")]


def answer(message: dict[str, Any]) -> dict[str, Any] | None:
    """The response to a message, nothing to a notification."""
    if "id" not in message:
        return None
    method, params = message["method"], message.get("params", {})
    result: dict[str, Any]
    if method == "initialize":
        server = {"name": "hand", "version": "1"}
        agreed = min(params["protocolVersion"], NEWEST)
        result = {"protocolVersion": agreed, "capabilities": {"tools": {}}, "serverInfo": server}
    elif method == "tools/list":
        result = {"tools": TOOLS}
    elif method == "tools/call" and params["name"] not in {tool["name"] for tool in TOOLS}:
        return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32602, "message": "no such tool"}}
    elif method == "tools/call":
        with tracer.start_as_current_span("query"):
            logger.emit(_logs.LogRecord(body="query"))
            result = {"content": [{"type": "text", "text": "x"}], "isError": params["name"] == "fail"}
    else:
        return {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no such method"}}
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}
