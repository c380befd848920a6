"""How agents get along with the server: handshakes, reconnects, made-up tools, corrections."""

from __future__ import annotations

from typing import Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from . import contract as m
from . import links, panels, query
from .board import Board
from .panels import Target
from .targets import now, over_time

HANDSHAKE: Final = f'{query.METHOD}=~"initialize|server/discover"'
WORKED: Final = f'{HANDSHAKE}, {query.ERROR}="", {query.CODE}=~"(-32601)?"'
"""A server of an older revision answers `server/discover` with -32601; then `initialize` follows."""
MADE_UP: Final = f'{query.FAILURE}="unknown_tool"'


def numbers(b: Board) -> None:
    """Add four numbers on how agents get along, each with a link to its details."""
    every = query.rate(m.OPERATION_DURATION.count, HANDSHAKE)
    wrong = query.increase(m.CALL_FAILURES.series, query.CALLER_WRONG)
    back, met = (query.increase(each.series) for each in (m.SESSION_RETURNED, m.SESSION_RESUMED))
    for title, description, target, unit, nothing, board in (
        (
            "Handshakes that work",
            "Share of `initialize` and `server/discover` that were answered without an error. Requests that were "
            "refused before, mostly for their credentials, are in *Refused at the door* below.",
            over_time(query.share(query.rate(m.OPERATION_DURATION.count, WORKED), every), "worked"),
            panels.SHARE,
            "none",
            "sessions",
        ),
        (
            "Reconnects",
            "Sessions whose clients came back after the server had refused their id, or that continued in another "
            "process after a restart, in the selected time range.",
            now(f"({back} or vector(0)) + ({met} or vector(0))", "back"),
            panels.COUNT,
            "none",
            "sessions",
        ),
        (
            "Made-up tools",
            "Share of tool calls that name a tool which does not exist: made up, or from a list before a deploy.",
            over_time(query.share(query.failures(MADE_UP), query.calls()), "made up"),
            panels.SHARE,
            "no calls",
            "tools",
        ),
        (
            "Corrected themselves",
            "Share of wrong calls after which the next call of the same tool in the session succeeded. Low: the error "
            "text does not say what to do.",
            now(query.share(query.increase(m.CALL_CORRECTED.series, query.CALLER_WRONG), wrong), "corrected"),
            panels.SHARE,
            "none wrong",
            "tools",
        ),
    ):
        b.add(_linked(title, description, target, unit, nothing, board), 6, 4)


def _linked(title: str, description: str, target: Target, unit: str, nothing: str, board: str) -> object:
    more = dashboard.DashboardLink("More of this").type(models.DashboardLinkType.LINK).url(links.same_choice(board))
    return panels.number(title, description, target, unit, nothing=nothing).links([more])


def connections(b: Board) -> None:
    """Add how often clients connect and reconnect."""
    b.lines(
        "Handshakes",
        "`worked`: answered without an error; `went on`: the client sent `notifications/initialized`, as clients do "
        "after `initialize`. Far below the first line: clients only probe, or fail after the handshake.",
        [
            over_time(query.rate(m.OPERATION_DURATION.count, WORKED), "worked", ref="A"),
            over_time(
                f"{query.rate(m.OPERATION_DURATION.count, HANDSHAKE)}"
                f" - ({query.rate(m.OPERATION_DURATION.count, WORKED)} or vector(0))",
                "failed",
                ref="B",
            ),
            over_time(
                query.rate(m.OPERATION_DURATION.count, f'{query.METHOD}="notifications/initialized"'),
                "went on",
                ref="C",
            ),
        ],
        panels.PER_SECOND,
    )
    b.lines(
        "Reconnects",
        "Sessions whose clients came back after a refused id, sessions resumed after a restart, and closed GET "
        "streams, which clients open again. Only the last, at a steady rate: a proxy closes them.",
        [
            over_time(query.rate(m.SESSION_RETURNED.series), "back after a cut", ref="A"),
            over_time(query.rate(m.SESSION_RESUMED.series), "met again after a restart", ref="B"),
            over_time(query.rate(m.STREAM_DURATION.count, f'{query.KIND}="get"'), "streams closed", ref="C"),
        ],
        panels.EVENTS,
    )
    chosen = f'{query.CLIENT}=~"$client"'
    called, began = (
        query.increase(m.CLIENT_REQUESTS.series, chosen, which, by=query.CLIENT)
        for which in (f'{query.METHOD}="tools/call"', HANDSHAKE)
    )
    b.add(
        panels.bars(
            "Tool calls for each handshake",
            "By client, in the selected time range. About one: the client reconnects for each call, which costs a "
            "handshake and a list of tools each time. Clients of 2026-07-28 need no handshake.",
            now(query.named(query.share(called, began), query.CLIENT), query.legend(query.CLIENT)),
            panels.COUNT,
        ).decimals(1),
        8,
    )
