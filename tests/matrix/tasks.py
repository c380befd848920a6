"""Rows of two replicas that share FastMCP's own tasks: what is reported of them equals what their client saw."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Final

import httpx2

from examples.demo.otlp_receiver import OtlpReceiver
from examples.demo.otlp_store import TelemetryStore
from tests.matrix.cells import Cell, Library
from tests.matrix.serving import served
from tests.support.messages import MODERN
from tests.support.tasks import OLD, of
from tests.support.waiting import wait_until

FASTMCP_4: Final = Library("fastmcp-tasks-4", ("fastmcp[tasks] == 4.1.4",))
FASTMCP_3: Final = Library("fastmcp-tasks-3", ("fastmcp[tasks] == 3.4.11",))
_QUICK: Final = {"OTEL_METRIC_EXPORT_INTERVAL": "500", "OTEL_BSP_SCHEDULE_DELAY": "200"}
_LASTS: Final = 1.0
"""Seconds of a task."""
_CALLS: Final = ({"seconds": _LASTS}, {"seconds": _LASTS, "fail": True}, {"seconds": 60.0})
"""Arguments; the last one is cancelled."""
_ENDS: Final = {"completed": 1, "failed": 1, "cancelled": 1}
_WITHIN: Final = 60.0


@dataclass(frozen=True)
class Tasks:
    """A row."""

    cell: Cell
    revision: str

    def __str__(self) -> str:
        return f"{self.cell} {self.revision}"


ROWS: Final = (
    Tasks(Cell(FASTMCP_4, "docket_app", "stateless"), MODERN),
    # A session of the SDK 1.x lives in one process; the tasks run in both.
    Tasks(Cell(FASTMCP_3, "docket_app"), OLD),
)


class _Client:
    """Sends messages of one revision to replicas, in turns where they keep no sessions."""

    def __init__(self, urls: list[str], revision: str) -> None:
        self._urls = urls if revision == MODERN else urls[:1]
        self._revision = revision
        self._http = httpx2.Client(trust_env=False, timeout=60)
        self._own = {"accept": "application/json, text/event-stream"}
        self._number = 0

    def ask(self, method: str, /, **params: Any) -> Any:
        """The result of a request."""
        self._number += 1
        message, headers = of(self._revision, method, self._number, **params)
        if self._revision == MODERN:
            message["params"]["_meta"] |= {
                "io.modelcontextprotocol/protocolVersion": MODERN,
                "io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}},
            }
        own = self._own | dict(headers) | ({"mcp-name": params["taskId"]} if "taskId" in params else {})
        return self._post(message, own)["result"]

    def shake_hands(self) -> None:
        """Begin a session, as clients of the older revision do."""
        about = {"protocolVersion": OLD, "capabilities": {}, "clientInfo": {"name": "matrix", "version": "1"}}
        self.ask("initialize", **about)
        self._post({"jsonrpc": "2.0", "method": "notifications/initialized"}, self._own)

    def _post(self, message: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
        url = self._urls[self._number % len(self._urls)]
        response = self._http.post(f"{url}/mcp", json=message, headers=headers)
        if session := response.headers.get("mcp-session-id"):
            self._own["mcp-session-id"] = session
        events = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
        return json.loads(events[-1] if events else response.text or "{}")

    def follow(self) -> None:
        """Have a task completed and fetched, one failed, and one cancelled."""
        for arguments in _CALLS:
            begun = self.ask("tools/call", name="build", arguments=arguments)
            task_id: str = begun.get("task", begun)["taskId"]
            if arguments["seconds"] > _LASTS:
                self.ask("tasks/cancel", taskId=task_id)
                continue
            until = time.monotonic() + _WITHIN
            while self.ask("tasks/get", taskId=task_id)["status"] == "working" and time.monotonic() < until:
                time.sleep(0.2)
            if self._revision == OLD:
                self.ask("tasks/result", taskId=task_id)


def check(row: Tasks, redis_url: str) -> list[str]:
    """What is wrong with a row; raises `ServerFailed`."""
    name = f"tasks-{token_hex(3)}"
    own = {"FASTMCP_DOCKET_URL": redis_url, "FASTMCP_DOCKET_NAME": name, "OTEL_PYTHON_MCP_REDIS_URL": redis_url}
    with OtlpReceiver() as receiver:
        with ExitStack() as stack:
            environment = {**_QUICK, **own, "OTEL_SERVICE_NAME": name}
            urls = [stack.enter_context(served(row.cell, receiver.endpoint, environment=environment)) for _ in range(2)]
            client = _Client(urls, row.revision)
            if row.revision == OLD:
                client.shake_hands()
            client.follow()
            telemetry = receiver.telemetry
            wait_until(lambda: telemetry.total("otel_mcp.task.duration") >= len(_CALLS), deadline=_WITHIN)
        return _problems(telemetry)


def _problems(telemetry: TelemetryStore) -> list[str]:
    problems: list[str] = []

    def expect(what: str, found: object, expected: object) -> None:
        if found != expected:
            problems.append(f"{what}: {found!r}, expected {expected!r}")

    ends: Counter[Any] = Counter()
    for point in telemetry.points("otel_mcp.task.duration"):
        ends[point.attributes["otel_mcp.task.status"]] += point.count
    expect("ends", dict(ends), _ENDS)
    expect("started", telemetry.total("otel_mcp.task.started"), len(_CALLS))
    completed = telemetry.histogram("otel_mcp.task.duration", {"otel_mcp.task.status": "completed"})
    expect("a task lasts as long as its work", (completed.mean or 0.0) >= _LASTS, True)
    spans = telemetry.spans()
    served = [span for span in spans if span.attributes.get("mcp.method.name") == "tools/call"]
    expect("spans of calls, none where a worker runs the tool", len(served), len(_CALLS))
    expect("sessions", len({span.attributes.get("session.id") for span in served}), 1)
    working = {span.trace_id for span in spans if span.kind == "CONSUMER"}
    expect("the work is in traces of its own", working & {span.trace_id for span in served}, set())
    built = {span.trace_id for span in spans if span.name == "building"}
    expect("what the tool does lies beneath docket's span", built - working, set())
    expect("workers have run tools", len(built) >= len(_CALLS) - 1, True)
    return problems
