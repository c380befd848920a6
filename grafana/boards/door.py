"""Requests that were refused before a tool ran: who sent them, and why."""

from __future__ import annotations

from functools import partial
from typing import Final

from . import contract as m
from . import links, panels, query
from .board import Board
from .targets import column, over_time

REFUSED: Final = f'{query.STATUS}!="405"'
"""Without 405, by which a server without streams answers the GET of every client of an older revision."""
CHOSEN: Final = f'{query.CLIENT}=~"$client"'


def number(b: Board) -> None:
    """Add how many requests of all clients are refused."""
    b.number(
        "Refused at the door",
        "Requests refused before a tool ran, for their credentials, session or form: see status and client below.",
        over_time(query.rate(m.REQUESTS_REFUSED.series, REFUSED), "refused"),
        panels.PER_SECOND,
    )


def refused(b: Board) -> None:
    """Add refusals by status and client, with links to traces."""
    rate = partial(query.rate, m.REQUESTS_REFUSED.series, CHOSEN, REFUSED)
    b.lines(
        "Refused, by status",
        "401: no token, or an expired one; OAuth starts with one for each new client. 403: a token without permission, "
        "or a foreign origin. 404: an unknown session, see *Restarts* of the Sessions dashboard. 400: a revision, "
        "header or body that the server does not accept.",
        [over_time(rate(by=query.STATUS), query.legend(query.STATUS))],
        panels.PER_SECOND,
        stacked=True,
    )
    b.lines(
        "Refused, by client",
        "One client: the client or its token; all at once: the server, its proxy or the issuer of tokens. `no name`: "
        "refused before the client's name was read.",
        [over_time(query.named(rate(by=query.CLIENT), query.CLIENT), query.legend(query.CLIENT))],
        panels.PER_SECOND,
        stacked=True,
    )
    by = f"{query.CLIENT}, {query.STATUS}"
    expr = query.increase(m.REQUESTS_REFUSED.series, CHOSEN, REFUSED, by=by)
    table = panels.rows(
        "Who is refused",
        "Totals of the selected time range. A click on a status leads to traces, on a client to its sessions.",
        [column("A", f"{expr} > 0")],
        panels.COUNT,
    )
    table = table.override_by_name(query.CLIENT, [panels.prop("links", [links.client_sessions(query.CLIENT)])])
    table = table.override_by_name(query.STATUS, [panels.prop("links", [links.refused(query.STATUS)])])
    b.add(panels.columns(table, {"Value": "refused"}, (query.CLIENT, query.STATUS, "Value")), 8)
