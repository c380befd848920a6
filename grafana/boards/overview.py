"""Is it healthy, and if not, whose fault is it?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from . import agents, door, links, panels, query, slo, tenants
from . import contract as m
from .board import Board
from .targets import PROMETHEUS, column, now, over_time

CALLS = f'{query.METHOD}="tools/call"'
BY_TOOL = f"{query.SERVICE}, {query.TOOL}"


def board() -> Board:
    """Return the dashboard to open first."""
    b = Board(
        "otel-mcp-overview",
        "MCP / Overview",
        "Is it healthy, and if not, whose fault is it: the server's, one tool's, one client's?",
    )
    b.select("environment", "service", "client", "tenant").jaeger_address().mark_deploys()
    _numbers(b)
    _calls(b.row("Calls"))
    _who(b.row("Who is calling"))
    tenants.usage(b.row("Tenants"))
    agents.numbers(b.row("How agents get along"))
    door.refused(b.row("Refused at the door"))
    _worst(b.row("Where to look"))
    return b


def _numbers(b: Board) -> None:
    active = f"sum({query.shared(m.SESSION_ACTIVE)})"
    b.number(
        "Active sessions",
        "How many conversations are open. All replicas read the same number from the shared store, so the panel shows "
        "the largest. Missing while the store does not answer.",
        over_time(active, "active"),
        panels.COUNT,
    )
    b.number(
        "Tool calls per second",
        "How busy the servers are. A sudden drop with steady sessions means that clients are stuck.",
        over_time(query.calls(), "calls"),
        panels.PER_SECOND,
    )
    b.add(
        panels.number(
            "Server failed",
            "Share of valid tool calls in which a tool failed or raised. Only these use up the error budget. An alert "
            "fires above 10 % of one tool: see below which one.",
            over_time(query.failing(), "failed"),
            panels.SHARE,
            nothing="no calls",
        )
        .thresholds(panels.thresholds((slo.TOOL_FAILING, "red")))
        .color_scheme(_by_threshold()),
        6,
        4,
    )
    b.number(
        "Caller asked wrongly",
        "Share of tool calls that name a tool which does not exist, or have invalid arguments. Not a failure of the "
        "server, but perhaps of its tool descriptions: the Tools dashboard shows which tool misleads which client.",
        over_time(query.wrong(), "asked wrongly"),
        panels.SHARE,
        nothing="no calls",
    )
    door.number(b)
    b.add(
        panels.number(
            "Tool latency, 95th percentile",
            "How long the slower calls take. An alert fires above 5 s; the Tools dashboard shows which tool and why.",
            over_time(query.quantile(0.95, m.OPERATION_DURATION, CALLS), "p95"),
            panels.SECONDS,
            nothing="no calls",
        )
        .thresholds(panels.thresholds((slo.TOOL_SLOW, "red")))
        .color_scheme(_by_threshold()),
        6,
        4,
    )
    ended = query.increase(m.SESSION_ENDED.series)
    expired = query.increase(m.SESSION_ENDED.series, f'{query.END_REASON}="expired"')
    b.number(
        "Sessions that expired",
        "Share of ended sessions that their clients did not close: clients crash, or never send DELETE. A jump after "
        "the release of a client points to that release.",
        now(query.share(expired, ended), "expired"),
        panels.SHARE,
        nothing="none ended",
    )
    degraded = panels.number(
        "Session store",
        "Whether the store answers. While it does not, calls succeed and sessions are kept in memory: "
        "see the runbook of MCPSessionStoreUnavailable.",
        over_time(f"max({query.select(m.STORE_DEGRADED.series)})", "degraded"),
        panels.COUNT,
    )
    b.add(degraded.mappings([_state()]).thresholds(panels.thresholds((1, "red"))).color_scheme(_by_threshold()), 6, 4)


def _calls(b: Board) -> None:
    b.rates(
        "Requests by method",
        "What clients request. Many tools/list or initialize per tool call: a client reconnects for each call.",
        m.OPERATION_DURATION.count,
        by=query.METHOD,
        width=12,
    )
    b.lines(
        "Error budget burn",
        f"How much faster errors come than the budget allows; 1 uses up the month's {slo.BUDGET:.1%} in a month. Above "
        f"{slo.PAGE_BURN:g} over an hour, an alert pages; above {slo.TICKET_BURN:g} over six hours, it opens a "
        f"ticket.",
        [
            over_time(f"max({query.select(slo.error_ratio(window))}) / {slo.BUDGET:.2g}", f"over {window}", ref=ref)
            for ref, window in zip("ABCD", slo.WINDOWS, strict=True)
        ],
        panels.COUNT,
        width=12,
    )
    b.lines(
        "Failing share by tool",
        "The five tools that fail most by the server's fault. One tool: its code or its dependencies; all of them: the "
        "server or the network.",
        [over_time(f"topk(5, {query.failing(by=query.TOOL)})", query.legend(query.TOOL))],
        panels.SHARE,
        width=12,
    )
    b.lines(
        "95th percentile by tool",
        "The five slowest tools. Points are exemplars: a click opens the trace of the call.",
        [
            over_time(
                f"topk(5, {query.quantile(0.95, m.OPERATION_DURATION, CALLS, by=query.TOOL)})",
                query.legend(query.TOOL),
                exemplars=True,
            )
        ],
        panels.SECONDS,
        width=12,
    )


def _who(b: Board) -> None:
    chosen = f'{query.CLIENT}=~"$client", {tenants.CHOSEN}'
    b.rates(
        "Requests by client",
        "Which client programs send requests. The first 20 have a name, all others are _OTHER.",
        m.CLIENT_REQUESTS.series,
        chosen,
        by=query.CLIENT,
    )
    b.rates(
        "Requests by protocol version",
        "Which revisions clients speak, for deciding when to drop an old one.",
        m.OPERATION_DURATION.count,
        by=query.PROTOCOL,
    )
    b.bars(
        "Requests of each client",
        "Totals of the selected time range, by client and method.",
        now(
            f"topk(10, {query.increase(m.CLIENT_REQUESTS.series, chosen, by=f'{query.CLIENT}, {query.METHOD}')})",
            query.legend(query.CLIENT, query.METHOD),
        ),
        panels.COUNT,
    )
    tenants.revisions(b)


def _worst(b: Board) -> None:
    order = (query.SERVICE, query.TOOL, "Value")
    failed = f"{query.increase(m.CALL_FAILURES.series, query.SERVER_FAILED, by=BY_TOOL)} > 0"
    slow = query.quantile(0.95, m.OPERATION_DURATION, CALLS, by=BY_TOOL, window=query.RANGE)
    for title, description, expr, unit, name in (
        (
            "Most failures",
            "The tools that failed most by the server's fault, in the selected time range. A click on a tool leads to "
            "its failed traces.",
            failed,
            panels.COUNT,
            "failed calls",
        ),
        (
            "Slowest tools",
            "The tools with the longest 95th percentile in the selected time range. A click leads to their traces.",
            slow,
            panels.SECONDS,
            "p95",
        ),
    ):
        table = panels.rows(title, description, [column("A", f"topk(10, {expr})")], unit).override_by_name(
            query.TOOL,
            [
                panels.prop(
                    "links",
                    [
                        links.tool_details(query.TOOL),
                        links.failed_tool_traces(query.SERVICE, query.TOOL)
                        if name == "failed calls"
                        else links.tool_traces(query.SERVICE, query.TOOL),
                    ],
                )
            ],
        )
        b.add(panels.columns(table, {"Value": name}, order), 8)
    b.add(
        dashboard.Panel()
        .type("alertlist")
        .title("Alerts")
        .description("Alerts that fire now. Each names its runbook.")
        .datasource(PROMETHEUS)
        .options(
            {
                "alertName": "",
                "dashboardAlerts": False,
                "datasource": "${datasource}",
                "groupMode": "default",
                "maxItems": 20,
                "sortOrder": 3,
                "stateFilter": {"error": True, "firing": True, "noData": False, "normal": False, "pending": True},
                "viewMode": "list",
            }
        ),
        8,
    )


def _by_threshold() -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS)


def _state() -> models.ValueMap:
    return models.ValueMap(
        options={
            "0": models.ValueMappingResult(text="answers", color="green", index=0),
            "1": models.ValueMappingResult(text="degraded", color="red", index=1),
        }
    )
