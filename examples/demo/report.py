"""Prints what the demo saw, all of it read back from Redis and from the OTLP receiver."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .evidence import Check
from .otlp_store import TelemetryStore
from .report_metrics import metrics_table, tools_table
from .report_sessions import session_document, session_story, sessions_table
from .report_traces import span_tree
from .sessions import SeenSession
from .views import processes_by_session


def show(
    console: Console,
    sessions: Sequence[SeenSession],
    telemetry: TelemetryStore,
    checks: Sequence[Check],
    redis_url: str,
) -> None:
    """Print the sessions, the one that the most processes served in detail, the one that waited, and the metrics."""
    parts: list[RenderableType] = [sessions_table(sessions, telemetry)]
    if sessions:
        processes = processes_by_session(telemetry)
        featured = max(sessions, key=lambda seen: len(processes.get(seen.session_id, ())))
        parts += [session_document(featured), span_tree(featured.session_id, telemetry)]
        parts += [
            session_story(seen, redis_url)
            for seen in sessions
            if seen.expires_in is not None and any(call.rounds > 1 for call in seen.document.tool_calls)
        ]
    parts += [tools_table(telemetry), metrics_table(telemetry), _checks_table(checks)]
    for part in parts:
        console.print(Group("", part))


def _checks_table(checks: Sequence[Check]) -> Table:
    table = Table(title="Checks", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("expected")
    table.add_column("found", justify="right")
    for check in checks:
        mark = Text("✓", "green") if check.passed else Text("✗", "bold red")
        table.add_row(mark, check.expectation, check.found)
    return table
