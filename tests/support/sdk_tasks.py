"""The tasks extension for servers of the SDK 2.x: calls of the tool `build` become tasks."""

from __future__ import annotations

from typing import Any

from mcp.server.extension import Extension, MethodBinding
from pydantic import BaseModel, ConfigDict

from tests.support.answers import OK
from tests.support.tasks import TaskServer


class _Params(BaseModel):
    model_config = ConfigDict(extra="allow")
    taskId: str


class TasksExtension(Extension):
    """Has `server` begin the tasks, and say what has become of them."""

    identifier = "io.modelcontextprotocol/tasks"

    def __init__(self, server: TaskServer | None = None) -> None:
        self.server = server or TaskServer()

    def methods(self) -> list[MethodBinding]:
        return [MethodBinding("tasks/get", _Params, self._get), MethodBinding("tasks/cancel", _Params, self._cancel)]

    async def intercept_tool_call(self, params: Any, ctx: Any, call_next: Any) -> Any:
        if params.name != "build":
            return await call_next(ctx)
        return self.server.begin(modern=True)

    async def _get(self, ctx: Any, params: _Params) -> Any:
        task = self.server.tasks[params.taskId]
        return {**task, "result": OK} if task["status"] == "completed" else task

    async def _cancel(self, ctx: Any, params: _Params) -> Any:
        self.server.put(params.taskId, "cancelled")
        return {}
