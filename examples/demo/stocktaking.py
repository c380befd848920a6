"""Stock-taking in the warehouse: a tool call that goes on as a task (`io.modelcontextprotocol/tasks` of 2026-07-28).

The robots that count are a system of their own. The id of a task says when they began and how far they have to go, so
every process of the server can answer for every task, and none has to keep any.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from mcp.server.extension import Extension, MethodBinding
from mcp_types import CallToolResult, RequestParams, TextContent

TOOL: Final = "take_stock"
AISLES: Final = 12
"""The warehouse has no more; the robots find out when they get there."""
_PER_AISLE: Final = 0.5
"""Seconds that the robots take."""
_KEPT: Final = 600_000
"""Milliseconds for which a result is kept."""
_CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"


class TaskParams(RequestParams):
    """Which task a request is about."""

    task_id: str


class Stocktaking(Extension):
    """Has calls of one tool go on as tasks, where the client says that it can follow them."""

    identifier = "io.modelcontextprotocol/tasks"

    def methods(self) -> Sequence[MethodBinding]:
        """Serve the requests about tasks."""
        return [
            MethodBinding("tasks/get", TaskParams, self._get),
            MethodBinding("tasks/cancel", TaskParams, self._cancel),
        ]

    async def intercept_tool_call(self, params: Any, ctx: Any, call_next: Any) -> Any:
        """Send the robots off, and answer with the task."""
        declared: Mapping[str, Any] = (ctx.meta or {}).get(_CAPABILITIES) or {}
        if params.name != TOOL or self.identifier not in (declared.get("extensions") or {}):
            return await call_next(ctx)
        began, aisles = time.time(), int((params.arguments or {}).get("aisles", 1))
        return {"resultType": "task", **_task(f"stock-{began:.3f}-{aisles}", began, "working", began)}

    async def _get(self, ctx: Any, params: TaskParams) -> Any:
        began, aisles = _read(params.task_id)
        done, now = began + min(aisles, AISLES + 1) * _PER_AISLE, time.time()
        if now < done:
            return _task(params.task_id, began, "working", now)
        if aisles > AISLES:
            error = {"code": -32603, "message": f"there is no aisle {AISLES + 1}"}
            return {**_task(params.task_id, began, "failed", done), "error": error}
        text = f"{aisles} aisles counted"
        result = CallToolResult(content=[TextContent(text=text)], structured_content={"result": text})
        shown = result.model_dump(by_alias=True, exclude_none=True)
        return {**_task(params.task_id, began, "completed", done), "result": shown}

    async def _cancel(self, ctx: Any, params: TaskParams) -> Any:
        _read(params.task_id)
        return {}


def _read(task_id: str) -> tuple[float, int]:
    """Return when a task began, in Unix seconds, and its aisles."""
    _, began, aisles = task_id.split("-")
    return float(began), int(aisles)


def _task(task_id: str, began: float, status: str, changed: float) -> dict[str, Any]:
    return {
        "taskId": task_id,
        "status": status,
        "createdAt": _text(began),
        "lastUpdatedAt": _text(changed),
        "ttlMs": _KEPT,
        "pollIntervalMs": 500,
    }


def _text(instant: float) -> str:
    return datetime.fromtimestamp(instant, UTC).isoformat()
