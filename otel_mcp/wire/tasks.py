"""Parse messages about tasks of 2025-11-25, and of the extension of 2026-07-28.

In the older revision, a client requests a task by ``params.task`` and fetches the result by ``tasks/result``. In the
newer one, the server decides, and returns the result with ``tasks/get`` or ``notifications/tasks``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, cast, get_args

from otel_mcp.wire.jsonrpc import field_of, text

TaskStatus = Literal["working", "input_required", "completed", "failed", "cancelled"]
STATUSES: Final = frozenset(get_args(TaskStatus))
TASK_METHODS: Final = frozenset({
    "tools/call", "tasks/get", "tasks/list", "tasks/result", "tasks/cancel", "tasks/update",
})  # fmt: skip
"""Methods whose results may show tasks."""
NOTIFICATIONS: Final = frozenset({"notifications/tasks", "notifications/tasks/status"})
_MAX_LISTED: Final = 100
"""Tasks of one list that are read, within a millisecond; servers send shorter pages."""
_MAX_TTL: Final = 10**12
"""Milliseconds; a longer integer of JSON may not fit into a float."""


_REFUSALS: Final = (-32600, -32601, -32602)
"""Errors of the request for a result; any other is the error by which the task failed."""


class TaskSeen(NamedTuple):
    """The state of a task in one message."""

    id: str
    """The server's id; leaves this process only as a keyed hash."""
    status: TaskStatus | None = None
    """``None`` = unknown."""
    updated: float | None = None
    """Unix seconds, later than the task's creation; ``None`` = unknown."""
    ttl: float | None = None
    """Seconds from its creation for which the server keeps the task; ``None`` = unknown or unlimited."""
    fetched: bool = False
    """The message contains the result."""


def begun(result: object) -> TaskSeen | None:
    """Read the task that a ``tools/call`` began; ``None`` = the result is not a task."""
    nested = _field(result, "task")
    if nested is None:
        nested = result if _field(result, "resultType", "result_type") == "task" else None
    return None if nested is None else _read(nested)


def shown(method: str, params: Mapping[str, Any], result: object) -> list[TaskSeen]:
    """Read the tasks in the answer to a request about tasks.

    `result` is ``None`` if it was too large to be parsed, and a mapping with the one key ``error`` for an error.
    """
    if method == "tasks/list":
        listed = _field(result, "tasks")
        entries = cast("list[object]", listed)[:_MAX_LISTED] if isinstance(listed, list) else []
        return [seen for entry in entries if (seen := _read(entry)) is not None]
    named = params.get("taskId")
    if not isinstance(named, str) or not named:
        return []
    if method == "tasks/result":
        if (code := _field(_field(result, "error"), "code")) is not None:
            return [] if code in _REFUSALS else [TaskSeen(text(named), fetched=True)]
        # The SDK 1.x answers without content if the task failed by an exception.
        failed = _field(result, "isError", "is_error") is True or _is_empty(result)
        return [TaskSeen(text(named), "failed" if failed else "completed", fetched=True)]
    if method == "tasks/cancel":
        # From 2026-07-28 on, the server only acknowledges.
        return [_read(result) or TaskSeen(text(named), "cancelled")]
    return [_read(result) or TaskSeen(text(named))]


def notified(params: object) -> TaskSeen | None:
    """Read the parameters of one of the `NOTIFICATIONS`."""
    return _read(params)


def _read(task: object) -> TaskSeen | None:
    """Read a task, dictionary or model; drafts nest it in a field ``task``."""
    inner = _field(task, "task")
    task = task if inner is None else inner
    named, status = _field(task, "taskId", "task_id"), _field(task, "status")
    if not (isinstance(named, str) and named and isinstance(status, str) and status in STATUSES):
        return None
    created, updated = _instant(_field(task, "createdAt")), _instant(_field(task, "lastUpdatedAt"))
    ttl: Any = _field(task, "ttlMs", "ttl")
    is_number = type(ttl) in (int, float) and ttl > 0
    result, error = _field(task, "result"), _field(task, "error")
    if status == "completed" and _field(result, "isError", "is_error") is True:
        status = "failed"  # In 2025-11-25, the server's status says so.
    return TaskSeen(
        text(named),
        cast("TaskStatus", status),
        updated if created is not None and updated is not None and updated > created else None,
        min(ttl, _MAX_TTL) / 1000 if is_number else None,
        result is not None or error is not None,
    )


def _is_empty(result: object) -> bool:
    return result is not None and _field(result, "content", "structuredContent") is None


def _field(value: object, *names: str) -> object:
    return next((found for name in names if (found := field_of(value, name)) is not None), None)


def _instant(value: object) -> float | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.timestamp() if isinstance(moment, datetime) and moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
