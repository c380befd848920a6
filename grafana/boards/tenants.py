"""Comparisons of tenants, of releases of a server, and of protocol revisions."""

from __future__ import annotations

from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.models import dashboard as models

from . import contract as m
from . import panels, query
from .board import Board
from .targets import column, over_time

CHOSEN = f'{query.TENANT}=~"$tenant"'
"""Selects tenants on metrics with the label; requests without a tenant lack it."""
CALLS = f'{query.METHOD}="tools/call", {query.TOOL}=~"$tool"'


def usage(b: Board) -> None:
    """Add what each tenant uses."""
    by = query.TENANT
    columns = {
        "A": ("requests", panels.WHOLE, query.increase(m.CLIENT_REQUESTS.series, CHOSEN, by=by)),
        "B": ("sessions begun", panels.WHOLE, query.increase(m.SESSION_STARTED.series, CHOSEN, by=by)),
        "C": ("sessions ended", panels.WHOLE, query.increase(m.SESSION_ENDED.series, CHOSEN, by=by)),
        "D": ("bytes answered", panels.BYTES, query.increase(m.TOOL_RESULT_SIZE.sum, CHOSEN, by=by)),
    }
    table = panels.rows(
        "Use by tenant",
        "Totals of the selected time range. `no name` is for requests without a tenant, and for all requests "
        "without the setting `TENANT`. The rows add up to the totals. For a bill, use the recording rules "
        "`mcp:tenant_…:increase1h`.",
        [column(ref, query.named(expr, by)) for ref, (_, _, expr) in columns.items()],
        panels.COUNT,
    )
    for ref, (_, unit, _) in columns.items():
        table = table.override_by_name(f"Value #{ref}", [panels.prop("unit", unit)])
    names = {f"Value #{ref}": title for ref, (title, _, _) in columns.items()}
    b.add(panels.columns(table, names, (by, *names)), 12)
    requests = query.named(query.rate(m.CLIENT_REQUESTS.series, CHOSEN, by=by), by)
    b.lines(
        "Requests by tenant",
        "One tenant that grows alone: its agent loops, or it is new. 50 have a name, all others are `_OTHER`.",
        [over_time(requests, query.legend(by))],
        panels.PER_SECOND,
        width=12,
        stacked=True,
    )


def revisions(b: Board) -> None:
    """Add which client speaks which revision."""
    by = f"{query.CLIENT}, {query.PROTOCOL}"
    requests = query.increase(m.CLIENT_REQUESTS.series, f'{query.CLIENT}=~"$client"', CHOSEN, by=by)
    b.add(
        _matrix(
            "Who speaks an old revision",
            "Requests of the selected time range, by client and revision, for deciding when to drop an old revision. "
            "`2024-11-05` is the transport with two endpoints (SSE); `2026-07-28` has no protocol sessions.",
            f"{requests} > 0",
            panels.COUNT,
            (query.CLIENT, query.PROTOCOL),
        ),
        12,
    )


def releases(b: Board) -> None:
    """Add how each release of a server does, tool by tool."""
    by, window = f"{query.TOOL}, {query.VERSION}", query.RANGE
    size = query.quantile(0.95, m.TOOL_RESULT_SIZE, f'{query.TOOL}=~"$tool"', CHOSEN, by=by, window=window)
    for title, description, expr, unit in (
        (
            "Latency by release, 95th percentile",
            "Releases in the selected time range, the newest last: what became slower, and by how much. Select a range "
            "with some hours of both.",
            query.quantile(0.95, m.OPERATION_DURATION, CALLS, by=by, window=window),
            panels.SECONDS,
        ),
        (
            "Failing share by release",
            "Valid calls that failed by the server's fault. If a tool fails in the newest column only, roll back.",
            query.failing(f'{query.TOOL}=~"$tool"', by=by, window=window),
            panels.SHARE,
        ),
        (
            "Result size by release, 95th percentile",
            "What a result costs the model's context, in every conversation.",
            size,
            panels.BYTES,
        ),
    ):
        b.add(_matrix(title, description, expr, unit, (query.TOOL, query.VERSION)), 8)


def _matrix(title: str, description: str, expr: str, unit: str, by: tuple[str, str]) -> tables.Panel:
    """Return a table with a row for each value of the first label, and a column for each of the second."""
    row, col = by
    panel = panels.rows(title, description, [column("A", expr)], unit)
    for name, options in (
        ("sortBy", {"sort": [{"field": col}]}),
        ("groupingToMatrix", {"rowField": row, "columnField": col, "valueField": "Value", "emptyValue": "null"}),
        ("organize", {"renameByName": {f"{row}\\{col}": query.HEADS[row]}}),
    ):
        panel = panel.with_transformation(models.DataTransformerConfig(id_val=name, options=options))
    return panel
