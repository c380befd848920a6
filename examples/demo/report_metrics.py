"""The metrics as tables: one of the tools, one of the sessions and clients."""

from __future__ import annotations

from typing import Final

from rich import box
from rich.table import Table

from .otlp_store import TelemetryStore
from .units import seconds
from .views import (
    CLIENT_DURATION,
    END_REASON,
    INPUT_WAIT,
    OPERATION_DURATION,
    SESSION_ENDED,
    SESSION_RESUMED,
    SESSION_STARTED,
    TASK_DURATION,
    TOOLS_CALL,
    by_attribute,
)

_COUNTERS: Final = (
    (SESSION_STARTED, "otel_mcp.session.source"),
    (SESSION_RESUMED, "otel_mcp.session.source"),
    (SESSION_ENDED, END_REASON),
    ("otel_mcp.client.requests", "otel_mcp.client.name"),
)
_HISTOGRAMS: Final = (
    ("mcp.server.session.duration", "s"),
    ("otel_mcp.session.tool_calls", "calls"),
    ("otel_mcp.tool.result.size", "B"),
    (INPUT_WAIT, "s"),
    (CLIENT_DURATION, "s"),
    (TASK_DURATION, "s"),
)


def tools_table(telemetry: TelemetryStore) -> Table:
    """Return a table of the tools; the quantiles are estimated from the buckets."""
    table = Table(title=f"Tools ({OPERATION_DURATION})", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("tool")
    for heading in ("calls", "errors", "p50", "p95", "mean"):
        table.add_column(heading, justify="right")
    points = telemetry.points(OPERATION_DURATION, TOOLS_CALL)
    for tool in sorted({str(point.attributes.get("gen_ai.tool.name")) for point in points}):
        of_tool = {**TOOLS_CALL, "gen_ai.tool.name": tool}
        histogram = telemetry.histogram(OPERATION_DURATION, of_tool)
        errors = telemetry.total(OPERATION_DURATION, {**of_tool, "error.type": "tool_error"})
        table.add_row(
            tool,
            str(histogram.count),
            f"{errors:g}",
            seconds(histogram.quantile(0.5)),
            seconds(histogram.quantile(0.95)),
            seconds(histogram.mean),
        )
    return table


def metrics_table(telemetry: TelemetryStore) -> Table:
    """Return a table of the session and client metrics, added up over all processes."""
    table = Table(title="Sessions and clients (metrics)", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("metric", "of"):
        table.add_column(heading)
    table.add_column("value", justify="right")
    for name, attribute in _COUNTERS:
        for value, total in sorted(by_attribute(telemetry, name, attribute).items()):
            if total:
                table.add_row(name, value, f"{total:g}")
    for name, unit in _HISTOGRAMS:
        histogram = telemetry.histogram(name)
        if histogram.mean is not None:
            table.add_row(name, f"mean of {histogram.count}", f"{histogram.mean:.1f} {unit}")
    active = telemetry.latest("otel_mcp.session.active")
    if active is not None:
        table.add_row("otel_mcp.session.active", "now", f"{active:g}")
    return table
