"""The session document: what ``GET mcp_session:{session_id}`` parses to."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

EndReason = Literal["client_delete", "expired", "server_closed", "replaced"]


class ToolCall(BaseModel):
    """One finished ``tools/call``. Carries no content unless the user opted in."""

    model_config = ConfigDict(extra="allow")

    tool_name: str
    request_id: str | int | None = None
    """JSON-RPC id; 0 is an id."""
    started_at: datetime
    """UTC, when the request reached the server."""
    duration: float
    """Seconds until the response was on its way."""
    error_type: str | None = None
    """``tool_error``, JSON-RPC code, ``cancelled``...; ``None`` = fine or a JSON-RPC error of the caller's fault."""
    failure: str | None = None
    """``unknown_tool``, ``invalid_arguments``, ``tool``, ``exception``, ``cancelled`` or ``refused``."""
    result_bytes: int | None = None
    """Size of the JSON-RPC response; ``None`` = not seen."""
    arguments_digest: str | None = None
    """Keyed hash of the arguments: tells repeats apart, reveals nothing."""
    trace_id: str | None = None
    """32 hexadecimal digits."""
    span_id: str | None = None
    """16 hexadecimal digits."""
    arguments: Any | None = None
    """Only with ``OTEL_PYTHON_MCP_STORE_CONTENT=true``."""
    result: Any | None = None
    """Only with ``OTEL_PYTHON_MCP_STORE_CONTENT=true``."""


class Ended(BaseModel):
    """When and why a session ended."""

    at: datetime
    reason: EndReason


class SessionState(BaseModel):
    """One session: the conversation of one client with one server.

    Example:
        >>> state = SessionState(session_id="abc")
        >>> state.tool_calls
        []
    """

    model_config = ConfigDict(extra="allow")

    session_id: str
    user_agent: str | None = None
    created_at: datetime | None = None
    """UTC."""
    last_activity: datetime | None = None
    """UTC; when the last request ended. The key lives for the configured time from its next write."""
    tool_calls: list[ToolCall] = Field(default_factory=list["ToolCall"])
    """The newest calls; ``tool_call_count`` tells how many there were."""

    tool_call_count: int = 0
    error_count: int = 0
    """Requests that failed by the fault of the server or a tool: with an ``error_type``, and no ``failure`` of
    ``unknown_tool`` or ``invalid_arguments``."""
    request_count: int = 0
    """JSON-RPC requests of any method."""
    service: str | None = None
    client_name: str | None = None
    client_version: str | None = None
    protocol_version: str | None = None
    source: str | None = None
    """How the session was recognised: ``header``, ``conversation``, ``inferred``..."""
    conversation_id: str | None = None
    previous_id: str | None = None
    """The session that this one continues."""
    attributes: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Free for the user; set through ``save()``."""
    ended: Ended | None = None
