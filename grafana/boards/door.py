"""Who is refused at the door, and why: requests that no tool saw."""

from __future__ import annotations

from functools import partial
from typing import Final

from . import contract as m
from . import links, panels, query
from .board import Board
from .targets import column, over_time

REFUSED: Final = f'{query.STATUS}!="405"'
"""A server without streams answers 405 to each client of an older revision, which asks for one: no refusal."""
CHOSEN: Final = f'{query.CLIENT}=~"$client"'


def number(b: Board) -> None:
    """Add how many are refused, of whatever client."""
    b.number(
        "Refused at the door",
        "Requests that no tool saw, for their credentials, session or form: by status and client below.",
        over_time(query.rate(m.REQUESTS_REFUSED.series, REFUSED), "refused"),
        panels.PER_SECOND,
    )


def refused(b: Board) -> None:
    """Add why, who, and a way to the traces of each."""
    rate = partial(query.rate, m.REQUESTS_REFUSED.series, CHOSEN, REFUSED)
    b.lines(
        "Refused, by status",
        "401: no token, or an old one; one for each client that begins is how OAuth starts. 403: a token without "
        "the right, or a foreign origin. 404: a session that is gone, see *Restarts* of the sessions. 400: a "
        "revision, header or body that the server does not take.",
        [over_time(rate(by=query.STATUS), query.legend(query.STATUS))],
        panels.PER_SECOND,
        stacked=True,
    )
    b.lines(
        "Refused, by client",
        "One client: it, or what it was given; all of them at once: the server, its proxy or who makes the tokens. "
        "`no name`: refused before anybody has read who it is.",
        [over_time(query.named(rate(by=query.CLIENT), query.CLIENT), query.legend(query.CLIENT))],
        panels.PER_SECOND,
        stacked=True,
    )
    by = f"{query.CLIENT}, {query.STATUS}"
    expr = query.increase(m.REQUESTS_REFUSED.series, CHOSEN, REFUSED, by=by)
    table = panels.rows(
        "Who is refused",
        "Totals of the range on screen. A click on a status leads to traces, on a client to its sessions.",
        [column("A", f"{expr} > 0")],
        panels.COUNT,
    ).decimals(0)
    table = table.override_by_name(query.CLIENT, [panels.prop("links", [links.client_sessions(query.CLIENT)])])
    table = table.override_by_name(query.STATUS, [panels.prop("links", [links.refused(query.STATUS)])])
    b.add(panels.columns(table, {"Value": "refused"}, (query.CLIENT, query.STATUS, "Value")), 8)
