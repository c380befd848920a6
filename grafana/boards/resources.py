"""Resources and prompts: who requests which, how fast, and which are missing."""

from __future__ import annotations

from typing import Final

from otel_mcp import semconv as names

from . import contract as m
from . import links, panels, query
from .board import Board
from .targets import buckets, column, now, over_time, search

READ: Final = "resources/read"
RESOURCES: Final = f'{query.METHOD}=~"resources/.*"'
READS: Final = f'{query.METHOD}="{READ}"'
GETS: Final = f'{query.METHOD}="prompts/get", {query.PROMPT}=~"$prompt"'
CLIENT: Final = f'{query.CLIENT}=~"$client"'
REFUSED: Final = f'{query.CODE}!=""'
"""Answered with a JSON-RPC error, by the caller's fault or the server's."""
CODES: Final = ("-32602", "-32002", "-32603", "0")
"""Codes for a missing resource or prompt: in 2026-07-28, in older revisions, and of SDKs for prompts."""


def board() -> Board:
    """Return the dashboard of resources and prompts."""
    b = Board(
        "otel-mcp-resources",
        "MCP / Resources and prompts",
        "Who requests which resources and prompts, how fast, and which are missing.",
    )
    b.traces().select("environment").service().select("prompt", "client")
    b.choice("code", "Code", **{code: code for code in CODES}).mark_deploys()
    _numbers(b)
    _resources(b.row("Resources"))
    _prompts(b.row("Prompts"))
    _clients(b.row("Who asks"))
    return b


def _numbers(b: Board) -> None:
    for title, which, description in (
        ("Reads", READS, "Resources read, per second."),
        ("Prompts", GETS, "Prompts requested, per second."),
    ):
        rate = query.rate(m.OPERATION_DURATION.count, which)
        failed = query.rate(m.OPERATION_DURATION.count, which, REFUSED)
        b.number(title, description, over_time(rate, title), panels.PER_SECOND, nothing="none")
        b.number(
            f"{title} answered with an error",
            "Mostly for missing ones: a name from a list before a deploy, or a made-up name.",
            over_time(query.share(failed, rate), "errors"),
            panels.SHARE,
            nothing="none",
        )


def _resources(b: Board) -> None:
    b.rates(
        "Requests by method",
        "Many lists for each read: a client lists resources again and again.",
        m.OPERATION_DURATION.count,
        RESOURCES,
        by=query.METHOD,
    )
    b.lines(
        "Errors by method and code",
        "`-32602` (2026-07-28) and `-32002` (before): there is no such resource. `-32603`: reading it failed.",
        [
            over_time(
                query.rate(m.OPERATION_DURATION.count, RESOURCES, REFUSED, by=f"{query.METHOD}, {query.CODE}"),
                query.legend(query.METHOD, query.CODE),
            )
        ],
        panels.PER_SECOND,
        stacked=True,
    )
    b.add(
        panels.heat(
            "Latency of reads",
            "All reads by duration. Each dot is one read: a click opens its trace.",
            buckets(query.heat(m.OPERATION_DURATION, READS), exemplars=True),
            panels.SECONDS,
        ),
        8,
    )
    opens = [panels.prop("links", [links.session_story("traceID")])]
    for title, description, tags in (
        (
            "Latest reads",
            "The resource is `mcp.resource.uri` on the span: there are too many for a metric. A click on the id shows "
            "the trace.",
            "",
        ),
        (
            "Reads answered so",
            "Reads that were answered with the code that is selected above.",
            f'{names.RPC_RESPONSE_STATUS_CODE}="$code"',
        ),
    ):
        found = panels.found(title, description, search(operation=READ, tags=tags))
        b.add(found.override_by_name("traceID", opens), 12, 9)


def _prompts(b: Board) -> None:
    by = f"{query.SERVICE}, {query.PROMPT}"
    rate = query.rate(m.OPERATION_DURATION.count, GETS, by=by, window=query.RANGE)
    failed = query.rate(m.OPERATION_DURATION.count, GETS, REFUSED, by=by, window=query.RANGE)
    p50, p95 = (query.quantile(q, m.OPERATION_DURATION, GETS, by=by, window=query.RANGE) for q in (0.5, 0.95))
    table = panels.rows(
        "Prompts of the server",
        "Every prompt in the selected time range. `_OTHER` are names that the server never listed, which SDKs answer "
        "with an internal error.",
        [column("A", rate), column("B", query.share(failed, rate)), column("C", p50), column("D", p95)],
        panels.SECONDS,
    )
    table = table.override_by_name("Value #A", [panels.prop("unit", panels.PER_SECOND)])
    table = table.override_by_name("Value #B", [panels.prop("unit", panels.SHARE)])
    titles = {"Value #A": "taken/s", "Value #B": "errors", "Value #C": "p50", "Value #D": "p95"}
    b.add(panels.columns(table, titles, (query.SERVICE, query.PROMPT, *titles)), 12)
    b.rates(
        "Prompts taken",
        "A prompt that is no longer requested was removed from the list, or lost its users.",
        m.OPERATION_DURATION.count,
        GETS,
        by=query.PROMPT,
        width=12,
    )


def _clients(b: Board) -> None:
    for title, description, which in (
        ("Reads by client", "Which clients read resources.", READS),
        ("Prompts by client", "Which clients request prompts.", f'{query.METHOD}="prompts/get"'),
        (
            "Lists by client",
            "Lists of tools, resources, templates and prompts. Far more than calls: the client lists at each turn.",
            f'{query.METHOD}=~".*/list"',
        ),
    ):
        expr = query.increase(m.CLIENT_REQUESTS.series, CLIENT, which, by=query.CLIENT)
        named = query.named(expr, query.CLIENT)
        b.bars(title, description, now(named, query.legend(query.CLIENT)), panels.COUNT)
