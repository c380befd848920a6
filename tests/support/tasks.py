"""A server whose tool calls begin tasks, written by hand: as in 2025-11-25, and by the extension of 2026-07-28."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

from otel_mcp.types import Message, Receive, Send
from tests.support.answers import OK
from tests.support.asgi import Headers, event, read, respond, stream
from tests.support.messages import CLIENT_INFO, MODERN, ask, call

OLD: Final = "2025-11-25"
REVISIONS: Final = (OLD, MODERN)


class TaskServer:
    """Begins a task with each ``tools/call``; what becomes of it is set in `tasks`, by anyone."""

    def __init__(self, tasks: dict[str, Message] | None = None, *, name: str = "task", ttl: int = 60_000) -> None:
        self.tasks = {} if tasks is None else tasks
        """By their ids, as ``tasks/get`` shows them; replicas may share them."""
        self.name = name
        self.ttl = ttl
        self.results: dict[str, Message] = {}
        """Answers to ``tasks/result`` other than the usual ones, by task."""
        self.before: list[Message] = []
        """Messages that come before the next answer, which is an event stream then."""

    def begin(self, *, modern: bool) -> Message:
        now = iso(time.time())
        task: Message = {"taskId": f"{self.name}-{len(self.tasks) + 1}", "status": "working", "createdAt": now}
        task |= {"lastUpdatedAt": now, "ttlMs" if modern else "ttl": self.ttl}
        self.tasks[task["taskId"]] = task
        return {"resultType": "task", **task} if modern else {"task": dict(task)}

    def put(self, task_id: str, status: str, after: float | None = None) -> None:
        """Bring a task to a status, so many seconds after it began; left out, a server that does not say when."""
        task = self.tasks[task_id]
        task["status"] = status
        if after is not None:
            task["lastUpdatedAt"] = iso(datetime.fromisoformat(task["createdAt"]).timestamp() + after)
        self.tasks[task_id] = task  # Where replicas share them, it is a copy.

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        modern = dict(scope["headers"]).get(b"mcp-protocol-version") == MODERN.encode()
        answer = {"jsonrpc": "2.0", "id": message["id"], **self._answer(message, modern=modern)}
        if self.before:
            before, self.before = self.before, []
            await stream(send, map(event, (*before, answer)))
        else:
            await respond(send, answer)

    def _answer(self, message: Message, *, modern: bool) -> Message:
        method, params = message["method"], message["params"]
        if method == "tools/call":
            return {"result": self.begin(modern=modern)}
        if method == "tasks/list":
            return {"result": {"tasks": list(self.tasks.values())}}
        task = self.tasks.get(params["taskId"])
        if task is None:
            return {"error": {"code": -32602, "message": "no such task"}}
        if method == "tasks/result":
            return self.results.get(task["taskId"]) or {"result": {**OK, "isError": task["status"] == "failed"}}
        if method == "tasks/cancel":
            task["status"] = "cancelled"
            return {"result": {} if modern else task}
        brings = {"result": OK} if modern and task["status"] == "completed" else {}
        return {"result": {**brings, **task}}


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def of(revision: str, method: str, number: object = 1, /, **params: Any) -> tuple[Message, Headers]:
    """A request of a client of that revision, with its headers."""
    message = call(request_id=number, **params) if method == "tools/call" else ask(method, number, **params)
    headers = [("mcp-protocol-version", revision)]
    if revision == MODERN:
        message["params"]["_meta"] = {CLIENT_INFO: {"name": "unit-client", "version": "9"}}
        headers.append(("mcp-method", method))
        if method == "tools/call":
            headers.append(("mcp-name", message["params"]["name"]))
    elif method == "tools/call":
        message["params"]["task"] = {"ttl": 60_000}
    return message, headers


def notification(task: Message, *, modern: bool = False) -> Message:
    """What a server says of a task by itself."""
    method = "notifications/tasks" if modern else "notifications/tasks/status"
    return {"jsonrpc": "2.0", "method": method, "params": task}


def by_status(points: Iterable[tuple[Message, Any]]) -> dict[tuple[str, str], Any]:
    """Points of a metric of tasks, by tool and status."""
    found = {(of["gen_ai.tool.name"], of["otel_mcp.task.status"]): value for of, value in points}
    return {key: value for key, value in found.items() if value}
