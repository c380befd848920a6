"""Each tool: calls, failures, latency, cost, and what it waits for."""

from __future__ import annotations

from . import bill, external, links, panels, query, slo, tasks, tenants
from . import contract as m
from .board import Board
from .targets import buckets, column, over_time

CALLS = f'{query.METHOD}="tools/call", {query.TOOL}=~"$tool"'
CHOSEN = f'{query.TOOL}=~"$tool"'
LEGEND_TOOL = query.legend(query.TOOL)
BY_TOOL = f"{query.SERVICE}, {query.TOOL}"


def board() -> Board:
    """Return the dashboard of the tools."""
    b = Board(
        "otel-mcp-tools",
        "MCP / Tools",
        "Each tool: calls, failures, latency, what it costs the model's context, and what it waits for.",
    )
    b.select("environment", "service", "tool", "client", "tenant").jaeger_address().mark_deploys()
    _table(b)
    _rates(b.row("Calls and failures"))
    _wrong(b.row("Wrong calls"))
    _latency(b.row("Latency"))
    tenants.releases(b.row("This release against the last"))
    bill.cost(b.row("What we cost the model"))
    _input(b.row("Waits for input"))
    tasks.add(b.row("Tasks"))
    _beneath(b.row("What tools wait for"))
    return b


def _table(b: Board) -> None:
    window = query.RANGE
    calls = query.rate(m.OPERATION_DURATION.count, CALLS, by=BY_TOOL, window=window)
    columns = {
        "A": ("calls/s", panels.PER_SECOND, calls),
        "B": (
            "failing",
            panels.SHARE,
            query.failing(CHOSEN, by=BY_TOOL, window=window),
        ),
        "C": ("p50", panels.SECONDS, _quantile(0.5)),
        "D": ("p95", panels.SECONDS, _quantile(0.95)),
        "E": ("p99", panels.SECONDS, _quantile(0.99)),
        "F": (
            "result, p95",
            panels.BYTES,
            query.quantile(0.95, m.TOOL_RESULT_SIZE, CHOSEN, tenants.CHOSEN, by=BY_TOOL, window=window),
        ),
    }
    table = panels.rows(
        "Tools",
        "Every tool in the selected time range. A click on a name leads to its traces in Jaeger. The failing share "
        "counts the server's failures only, and is red from the threshold of its alert on.",
        [column(ref, expr) for ref, (_, _, expr) in columns.items()],
        panels.PER_SECOND,
    )
    for ref, (_, unit, _) in columns.items():
        table = table.override_by_name(f"Value #{ref}", [panels.prop("unit", unit)])
    table = table.override_by_name(
        query.TOOL,
        [
            panels.prop(
                "links",
                [
                    links.tool_traces(query.SERVICE, query.TOOL),
                    links.failed_tool_traces(query.SERVICE, query.TOOL),
                ],
            )
        ],
    )
    red = {"mode": "absolute", "steps": [{"color": "text", "value": None}, {"color": "red", "value": slo.TOOL_FAILING}]}
    table = table.override_by_name(
        "Value #B", [panels.prop("thresholds", red), panels.prop("custom.cellOptions", {"type": "color-text"})]
    )
    names = {f"Value #{ref}": title for ref, (title, _, _) in columns.items()}
    b.add(panels.columns(table, names, (query.SERVICE, query.TOOL, *names)), 24, 9)


def _quantile(q: float) -> str:
    return query.quantile(q, m.OPERATION_DURATION, CALLS, by=BY_TOOL, window=query.RANGE)


def _rates(b: Board) -> None:
    b.lines(
        "Calls by tool",
        "Which tools are used. If a tool is no longer called, a client's prompt has changed, or the tool was removed.",
        [over_time(query.rate(m.OPERATION_DURATION.count, CALLS, by=query.TOOL), LEGEND_TOOL)],
        panels.PER_SECOND,
        stacked=True,
    )
    b.lines(
        "Failures by tool and kind",
        "`tool`: the tool reported an error; `exception`: it raised, and the type is on the span. These are the "
        "server's fault. `unknown_tool` and `invalid_arguments` are the caller's: see below. `refused`: no tool ran. "
        "Each dot is a failed call: a click opens its trace.",
        [
            over_time(
                query.failures(CHOSEN, by=f"{query.TOOL}, {query.FAILURE}"),
                query.legend(query.TOOL, query.FAILURE),
                exemplars=True,
            )
        ],
        panels.PER_SECOND,
        stacked=True,
    )
    b.lines(
        "Being served now",
        "Requests that are not answered yet. A line that rises and does not fall: calls hang.",
        [
            over_time(
                f"sum by ({query.METHOD}, {query.TOOL}) ({query.select(m.REQUESTS_ACTIVE.series)})",
                query.legend(query.METHOD, query.TOOL),
            )
        ],
        panels.COUNT,
        stacked=True,
    )
    b.lines(
        "Oldest call in flight",
        "Age of each tool's oldest call without an answer. A line that only rises: the call hangs; clients give up "
        "after about a minute, but the tool runs on.",
        [
            over_time(
                f"max by ({query.TOOL}) ({query.select(m.CALL_OLDEST.series, CHOSEN)})",
                query.legend(query.TOOL),
            )
        ],
        panels.SECONDS,
    )


def _wrong(b: Board) -> None:
    chosen = (query.CALLER_WRONG, CHOSEN, f'{query.CLIENT}=~"$client"')
    for title, description, by in (
        (
            "Wrong calls by tool and kind",
            "`invalid_arguments`: the tool's description or schema is misleading; `unknown_tool`: the name was made "
            "up, or is from a list before a deploy. `_OTHER` are names that the server never listed.",
            (query.TOOL, query.FAILURE),
        ),
        (
            "Wrong calls by client",
            "One client: its model or prompt; all clients: the tool. A jump at a deploy: the tool has changed.",
            (query.CLIENT,),
        ),
    ):
        expr = query.failures(*chosen, by=", ".join(by))
        b.lines(
            title,
            description,
            [over_time(expr, query.legend(*by), exemplars=True)],
            panels.PER_SECOND,
            width=12,
            stacked=True,
        )
    by = f"{query.TOOL}, {query.FAILURE}, {query.CLIENT}"
    wrong, corrected = (query.increase(m.series, *chosen, by=by) for m in (m.CALL_FAILURES, m.CALL_CORRECTED))
    table = panels.rows(
        "Who asks wrongly",
        "Which client gets which tool wrong, and how often its next call of the tool succeeded. Few corrections: the "
        "error text does not say what to do. Without sticky routing, some corrections are not counted. A click on a "
        "kind leads to traces, on a client to its sessions.",
        [column("A", f"{wrong} > 0"), column("B", query.share(corrected, wrong))],
        panels.COUNT,
    )
    table = table.override_by_name("Value #B", [panels.prop("unit", panels.SHARE)])
    table = table.override_by_name(query.CLIENT, [panels.prop("links", [links.client_sessions(query.CLIENT)])])
    table = table.override_by_name(query.FAILURE, [panels.prop("links", [links.wrong_calls(query.FAILURE)])])
    names = {"Value #A": "wrong calls", "Value #B": "corrected themselves"}
    b.add(panels.columns(table, names, (query.TOOL, query.FAILURE, query.CLIENT, *names)), 24, 7)


def _latency(b: Board) -> None:
    b.add(
        panels.heat(
            "Latency",
            "All calls of the selected tools by duration. Each dot is a call: a click opens its trace.",
            buckets(query.heat(m.OPERATION_DURATION, CALLS), exemplars=True),
            panels.SECONDS,
        ),
        12,
        9,
    )
    b.add(
        panels.lines(
            "95th percentile by tool",
            "How long the slower calls of each tool take, with exemplars: a click on a point opens the trace.",
            [over_time(query.quantile(0.95, m.OPERATION_DURATION, CALLS, by=query.TOOL), LEGEND_TOOL, exemplars=True)],
            panels.SECONDS,
        ),
        12,
        9,
    )


def _input(b: Board) -> None:
    b.lines(
        "Waits for people",
        "How long calls waited for input, mostly from a person: 95th percentile, from the answer that asked to the "
        "request that brought it. Other latencies do not include this time.",
        [over_time(query.quantile(0.95, m.CALL_INPUT_WAIT, CHOSEN, by=query.TOOL), LEGEND_TOOL)],
        panels.SECONDS,
        width=12,
    )
    table = panels.rows(
        "Asked, and never answered",
        "Inputs that came in the selected time range, and calls whose session ended without theirs: people do not "
        "understand the question, or the host cannot ask it.",
        [
            column("A", query.increase(m.CALL_INPUT_WAIT.count, CHOSEN, by=query.TOOL)),
            column("B", query.increase(m.CALL_INPUT_ABANDONED.series, CHOSEN, by=query.TOOL)),
        ],
        panels.COUNT,
    )
    names = {"Value #A": "brought", "Value #B": "never brought"}
    b.add(panels.columns(table, names, (query.TOOL, *names)), 12)
    failed, by = f'{query.ERROR}!=""', (query.METHOD, query.ERROR)
    b.lines(
        "Requests to clients",
        "Elicitation, sampling and roots that tools request while they run, up to 2025-11-25: 95th percentile until "
        "the answer. The latency of the tool includes this time.",
        [over_time(query.quantile(0.95, m.CLIENT_DURATION, by=query.METHOD), query.legend(query.METHOD))],
        panels.SECONDS,
        width=12,
    )
    b.lines(
        "Requests to clients that fail",
        "By the client's error; `unanswered`: no answer before the call ended; -1: a person declined.",
        [over_time(query.rate(m.CLIENT_DURATION.count, failed, by=", ".join(by)), query.legend(*by))],
        panels.PER_SECOND,
        width=12,
    )


def _beneath(b: Board) -> None:
    kinds = 'span_kind=~"SPAN_KIND_CLIENT|SPAN_KIND_PRODUCER"'
    b.lines(
        "Operations of others, time per second",
        "Seconds per second that tools spend in databases and services, from all spans before sampling. Speed up the "
        "largest first.",
        [
            over_time(
                f"topk(10, {query.rate(external.SPAN_TIME, kinds, by='span_name')})",
                "{{span_name}}",
            )
        ],
        panels.SECONDS,
        stacked=True,
    )
    b.lines(
        "Operations of others, 95th percentile",
        "How long the slower operations take.",
        [
            over_time(
                f"topk(10, histogram_quantile(0.95, {query.rate(external.SPAN_DURATION, kinds, by='le, span_name')}))",
                "{{span_name}}",
            )
        ],
        panels.SECONDS,
    )
    window = query.RANGE
    by = "client, server"
    edges = 'client=~"$service"'
    calls = f"sum by ({by}) (rate({external.EDGE_CALLS}{{{edges}}}[{window}]))"
    failed = f"sum by ({by}) (rate({external.EDGE_FAILED}{{{edges}}}[{window}]))"
    slow = f"histogram_quantile(0.95, sum by (le, {by}) (rate({external.EDGE_DURATION}{{{edges}}}[{window}])))"
    table = panels.rows(
        "Who they call",
        "The service graph: the services and databases that the servers call, with rates, failures and latency.",
        [column("A", calls), column("B", query.share(failed, calls)), column("C", slow)],
        panels.PER_SECOND,
    )
    table = table.override_by_name("Value #B", [panels.prop("unit", panels.SHARE)])
    table = table.override_by_name("Value #C", [panels.prop("unit", panels.SECONDS)])
    names = {"Value #A": "calls/s", "Value #B": "failing", "Value #C": "p95"}
    b.add(panels.columns(table, names, ("client", "server", *names)), 8)
