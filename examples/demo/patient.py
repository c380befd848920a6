"""Clients that wait: for a person whom a tool wants to ask, and for a task that a call has begun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import anyio
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ElicitResult, Request, RequestParams, Result

from .driver import ADDRESS, LEGACY, MODERN, Tally, connect

_THINKS: Final = 1.0
"""Seconds that a person takes for an answer."""
_ANSWERS: Final[dict[str, Any]] = {"address": ADDRESS, "agreed": True}


class Task(Result):
    """What an answer says of a task."""

    result_type: Literal["task"]
    task_id: str
    poll_interval_ms: int


class TaskParams(RequestParams):
    """Which task a request is about."""

    task_id: str


class GetTask(Request[TaskParams, Literal["tasks/get"]]):
    """Asks how a task goes."""

    name_param = "taskId"
    method: Literal["tasks/get"] = "tasks/get"
    params: TaskParams


class TaskShown(Result):
    """How a task goes, and what has come of it."""

    status: str
    result: CallToolResult | None = None
    error: dict[str, Any] | None = None


class FollowsTasks(ClientExtension):
    """Waits for the end of the tasks that calls begin, so that a call returns what has come of it."""

    identifier = "io.modelcontextprotocol/tasks"

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def claims(self) -> Sequence[ResultClaim[Any]]:
        """Take over the results that are tasks."""
        return [ResultClaim(result_type="task", model=Task, resolve=self._follow)]

    async def _follow(self, task: Task, context: ClaimContext) -> CallToolResult:
        self._tally.tasks += 1
        while True:
            await anyio.sleep(task.poll_interval_ms / 1000)
            shown = await context.session.send_request(GetTask(params=TaskParams(task_id=task.task_id)), TaskShown)
            if shown.error is not None:
                raise MCPError(shown.error["code"], shown.error["message"])
            if shown.result is not None:
                return shown.result


async def _person(context: Any, params: Any) -> ElicitResult:
    """Answer what is asked, after some thought."""
    await anyio.sleep(_THINKS)
    (asked,) = params.requested_schema["properties"]
    return ElicitResult(action="accept", content={asked: _ANSWERS[asked]})


async def concierge(url: str, tally: Tally) -> None:
    """Book a courier together with the customer, then wait for a stock-taking."""
    patient = {"elicitation_callback": _person, "extensions": [FollowsTasks(tally)]}
    async with connect(url, tally, name="concierge", version="1.3.0", mode=MODERN, **patient) as caller:
        tally.rounds += 2
        await caller.call("book_courier", order="A-1003")
        await caller.call("take_stock", aisles=6)


async def telephone_desk(url: str, tally: Tally) -> None:
    """Book a courier in the older revision, at a server that keeps its sessions."""
    patient = {"elicitation_callback": _person}
    async with connect(url, tally, name="telephone-desk", version="0.8.0", mode=LEGACY, **patient) as caller:
        await caller.call("book_courier", order="A-1002")
        tally.answers += 2


async def drifter(url: str, tally: Tally) -> None:
    """Have a person asked who never answers, and begin a task that nobody looks after."""
    patient = {"elicitation_callback": _person, "extensions": [FollowsTasks(tally)]}
    async with connect(url, tally, name="drifter", version="0.2.0", mode=MODERN, **patient) as caller:
        tally.calls += 2
        await caller.client.session.call_tool("book_courier", {"order": "A-1004"}, allow_input_required=True)
        await caller.client.session.call_tool("take_stock", {"aisles": 4}, allow_claimed=True)
