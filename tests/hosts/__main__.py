"""Every client visits every server twice: with the package at work, and without.

What the client itself saw is held against what was exported: calls = spans =
counted operations, one session where a person would say one, known by the
right source, and the same answers.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from examples.demo.otlp_receiver import OtlpReceiver
from tests.hosts.clients import HOSTS, INSPECTOR, Host, ToolMissing
from tests.hosts.exchanges import Exchange, client_name, differences, methods, read, requests
from tests.matrix.cells import CURRENT, FASTMCP_3, HANDWRITTEN, MCP_1_9, MCP_1_30, Cell
from tests.matrix.serving import ServerFailed, served

CLIENT_NAME: Final = "otel_mcp.client.name"
LISTEN: Final = "subscriptions/listen"
SERVERS: Final = (
    *(Cell(CURRENT, "sdk2", mode) for mode in ("stateful", "stateless", "json", "sse")),
    *(Cell(CURRENT, "fastmcp_app", mode) for mode in ("stateful", "stateless", "sse")),
    *(Cell(MCP_1_30, "sdk1", mode) for mode in ("stateful", "stateless", "json", "sse")),
    *(Cell(MCP_1_9, "sdk1", mode) for mode in ("stateful", "sse")),
    Cell(FASTMCP_3, "fastmcp_app", "stateful"),
    Cell(HANDWRITTEN, "fastapi_route"),
)


@dataclass
class Visit:
    """One client at one server."""

    host: Host
    exchanges: list[Exchange]
    printed: list[str]
    failed: str
    began_ns: int
    ended_ns: int


def main() -> int:
    """Returns the number of pairs that are wrong."""
    able = [host for host in HOSTS if _can_run(host)]
    wrong = pairs = 0
    for cell in (cell for cell in SERVERS if all(word in str(cell) for word in sys.argv[1:])):
        hosts = [host for host in able if host.over_sse is (cell.mode == "sse")]
        if cell.library is MCP_1_9:
            # After a DELETE that server answers nobody any more.
            hosts = [host for host in hosts if not host.says_goodbye]
        try:
            found = run(cell, hosts)
        except (ServerFailed, ToolMissing) as failure:
            found = {str(cell): str(failure).splitlines()}
        for name, problems in found.items():
            pairs += 1
            wrong += bool(problems)
            print(f"{'FAIL' if problems else 'ok  '} {cell} | {name}", flush=True)
            for problem in problems:
                print(f"     {problem}", flush=True)
    print(f"{pairs - wrong} passed, {wrong} failed")
    return wrong


def _can_run(host: Host) -> bool:
    """Install or build a client; what cannot be had is skipped, loudly."""
    try:
        host.prepare()
    except ToolMissing as failure:
        print(f"SKIPPED: {host} has not been tried: {failure}", flush=True)
        return False
    return True


def run(cell: Cell, hosts: list[Host]) -> dict[str, list[str]]:
    """What is wrong, by client."""
    with served(cell, None) as url:
        bare = [_visit(host, url, cell) for host in hosts]
    with OtlpReceiver() as receiver:
        with served(cell, receiver.endpoint) as url:
            seen = [_visit(host, url, cell) for host in hosts]
        telemetry = receiver.telemetry
    found = {str(visit.host): _problems(visit, without, telemetry) for visit, without in zip(seen, bare, strict=True)}
    found["all of them"] = _counted(seen, telemetry)
    return found


def _visit(host: Host, url: str, cell: Cell) -> Visit:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "exchanges"
        began, printed, failed = time.time_ns(), list[str](), ""
        try:
            printed = host.visit(f"{url}{_path(cell)}", record)
        except RuntimeError as failure:
            failed = str(failure)
        return Visit(host, read(record), printed, failed, began, time.time_ns())


def _path(cell: Cell) -> str:
    if cell.mode == "sse":
        return "/sse"
    # 1.9 redirects to it, which not every client follows.
    return "/mcp/" if cell.library is MCP_1_9 else "/mcp"


def _problems(visit: Visit, without: Visit, telemetry: Any) -> list[str]:
    problems: list[str] = differences(visit.exchanges, without.exchanges)

    def expect(what: str, found: object, expected: object) -> None:
        if found != expected:
            problems.append(f"{what}: {found!r}, expected {expected!r}")

    # A client that pins a revision fails at an older server; then it has to fail in the same way.
    expect("failed", bool(visit.failed), bool(without.failed))
    expect("printed", visit.printed, without.printed)
    spans = [
        span
        for span in telemetry.spans()
        if "mcp.method.name" in span.attributes and visit.began_ns <= span.start_ns <= visit.ended_ns
    ]
    served_spans = [span for span in spans if span.kind == "SERVER" and "jsonrpc.request.id" in span.attributes]
    spans_of = Counter((s.attributes["mcp.method.name"], str(s.attributes["jsonrpc.request.id"])) for s in served_spans)
    expect("spans", spans_of, requests(visit.exchanges))
    taken = [span for span in served_spans if span.attributes["mcp.method.name"] != "server/discover"]
    expect("sessions", len({span.attributes.get("session.id") for span in taken}), _sessions(visit))
    expect("sources", {span.attributes.get("otel_mcp.session.source") for span in taken}, _sources(visit))
    failed = {
        (span.status, span.attributes.get("error.type"))
        for span in taken
        if span.attributes.get("gen_ai.tool.name") == "fail"
    }
    expect("errors", failed, {("ERROR", "tool_error")} if taken and not visit.failed else set())
    return problems


def _modern(visit: Visit) -> bool:
    """Whether they agreed on the revision without sessions."""
    return any(exchange.modern and exchange.message.get("method") == "tools/call" for exchange in visit.exchanges)


def _sessions(visit: Visit) -> int:
    if not any(exchange.message.get("method") == "tools/call" for exchange in visit.exchanges):
        return 0
    # Each process of the Inspector opens a session, where the revision has any.
    return len(visit.host.visits) if visit.host.package is INSPECTOR and not _modern(visit) else 1


def _sources(visit: Visit) -> set[str]:
    if not _sessions(visit):
        return set()
    return {"inferred_weak"} if _modern(visit) else {"header", *(["inferred_weak"] if _continued(visit) else [])}


def _continued(visit: Visit) -> int:
    """Sessions that go on in another one: a client that closes a session after one call, and comes back at once."""
    return int(visit.host.package is INSPECTOR and visit.host.over_sse and _sessions(visit) > 1)


def _begun(visit: Visit) -> int:
    return _sessions(visit) - _continued(visit)


def _counted(visits: list[Visit], telemetry: Any) -> list[str]:
    """Metrics know no clients, so all are counted together; and each session has begun once."""
    problems: list[str] = []
    sent = sum((methods(visit.exchanges) for visit in visits), Counter[str]())
    sent.pop(LISTEN, None)
    name = "mcp.server.operation.duration"
    counted = Counter({method: int(telemetry.total(name, {"mcp.method.name": method})) for method in sent})
    if counted != sent:
        problems.append(f"operations: {counted!r}, expected {sent!r}")
    started = Counter(record.attributes["session.id"] for record in telemetry.events("session.start"))
    expected = sum(map(_begun, visits))
    if set(started.values()) - {1} or len(started) != expected:
        problems.append(f"sessions begun: {started!r}, expected {expected} once each")
    named = Counter(str(record.attributes.get(CLIENT_NAME)) for record in telemetry.events("session.start"))
    names = Counter(name for visit in visits for name in [client_name(visit.exchanges)] * _begun(visit))
    if named != names:
        problems.append(f"sessions begun by client: {named!r}, expected {names!r}")
    return problems


if __name__ == "__main__":
    sys.exit(bool(main()))
