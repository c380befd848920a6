"""The session document: what ``GET mcp_session:{session_id}`` parses to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

EndReason = Literal["client_delete", "expired", "server_closed", "replaced"]
Cause = Literal["restart", "replica", "idle_reaper"]


class ToolCall(BaseModel):
    """One finished ``tools/call``. Carries no content unless the user opted in."""

    model_config = ConfigDict(extra="allow")

    tool_name: str
    request_id: str | int | None = None
    """JSON-RPC id; 0 is an id."""
    started_at: datetime
    """UTC, when the request reached the server."""
    duration: float
    """Seconds until the response was sent; the sum of all rounds, without the waits between them."""
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
    service_instance_id: str | None = None
    """The process that served it, as named in its telemetry; without a name, host and process id."""
    rounds: int = 1
    """Number of requests of this logical call, since its results asked for input (2026-07-28)."""
    input_wait: float = 0.0
    """Seconds between them: from each answer that asked until the request with the input."""
    waiting: str | None = None
    """Set while its last answer asks for input that has not come: a keyed hash, for the next round."""
    answers: str | None = None
    """Set if it brings input that no call in this document asked for: forged, repeated, or that call is yet to come."""
    task: str | None = None
    """Keyed hash of the id of the task that it began: then its result contains nothing else."""
    arguments: Any | None = None
    """Only with ``OTEL_PYTHON_MCP_STORE_CONTENT=true``."""
    result: Any | None = None
    """Only with ``OTEL_PYTHON_MCP_STORE_CONTENT=true``."""


ADVICE: Final = "otel_mcp.advice"
"""Key in ``SessionState.attributes`` of the observer agent's advice on a session, by problem."""


class Ended(BaseModel):
    """When and why a session ended."""

    at: datetime
    reason: EndReason


class Interrupted(BaseModel):
    """When and why a server refused a live session."""

    at: datetime
    cause: Cause
    """``restart``: the process is younger than the session. ``replica``: another one has it. ``idle_reaper``: the
    server itself has closed it."""


class SessionState(BaseModel):
    """One session: the conversation of one client with one server.

    A document is read, changed and written back on any event loop. The methods wait for the store; while it is
    down they use what this process knows, and their changes are written when it is back.

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
    """The newest calls; ``tool_call_count`` counts all."""

    tool_call_count: int = 0
    error_count: int = 0
    """Requests that failed by the fault of the server or a tool: with an ``error_type``, and no ``failure`` of
    ``unknown_tool`` or ``invalid_arguments``."""
    request_count: int = 0
    """JSON-RPC requests of any method."""
    context_bytes: int = 0
    """Bytes given to the model: the list of tools, and results of tools, prompts and resources."""
    catalogue_bytes: int = 0
    """The part of them for the list of tools."""
    service: str | None = None
    client_name: str | None = None
    client_version: str | None = None
    synthetic_type: str | None = None
    """``bot``: a registry, scanner or monitor; ``test``: somebody's own check; ``None`` = neither, or not known."""
    tenant: str | None = None
    """The customer that the session belongs to, with ``TENANT``: from its first request that names one."""
    protocol_version: str | None = None
    source: str | None = None
    """How the session was recognised: ``header``, ``conversation``, ``inferred``..."""
    conversation_id: str | None = None
    previous_id: str | None = None
    """The session that this one continues."""
    attributes: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Free for the user; set through ``save()``. A value of more than 65,536 characters of JSON becomes a clipped
    string."""
    findings: list[str] = Field(default_factory=list[str])
    """Patterns found while it runs: ``looped``, ``retry_storm``, ``ping_pong``; the first one first."""
    outcome: str | None = None
    """How it went, once its end is reported: ``worked``, ``corrected``, ``looped``, ``retry_storm``, ``ping_pong``,
    ``gave_up``, ``no_call`` or ``probe``."""
    ended: Ended | None = None
    interrupted: Interrupted | None = None
    """The last time that a server did not seem to know it."""

    @classmethod
    async def load(cls, session_id: str) -> SessionState | None:
        """Read a session, the calls of this process included; ``None`` if there is none.

        Raises:
            RuntimeError: OpenTelemetry is switched off in this process. The other methods raise it too.
        """
        return await _documents().load(session_id)

    @classmethod
    async def get_or_create(cls, session_id: str, *, user_agent: str | None = None) -> SessionState:
        """Read a session, or begin it if there is none."""
        return await _documents().get_or_create(session_id, user_agent=user_agent)

    async def save(self) -> None:
        """Write the facts, ``attributes`` and extra fields; calls and counters are those of the server."""
        await _documents().save(self)

    async def delete(self) -> bool:
        """End the session and remove its document; ``False`` if there was none."""
        return await _documents().delete(self.session_id)


class Documents(Protocol):
    """Reads and writes documents."""

    async def load(self, session_id: str) -> SessionState | None: ...
    async def get_or_create(self, session_id: str, *, user_agent: str | None = None) -> SessionState: ...
    async def save(self, state: SessionState) -> None: ...
    async def delete(self, session_id: str) -> bool: ...


def _unbound() -> Documents:
    raise RuntimeError("import SessionState from otel_mcp")


_documents: Callable[[], Documents] = _unbound


def bind(documents: Callable[[], Documents]) -> None:
    """Let `SessionState` use these: the sessions of this process, in a layer above the model."""
    global _documents
    _documents = documents
