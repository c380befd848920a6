"""Outcomes of sessions, and the effect of restarts: rows of the dashboard of sessions."""

from __future__ import annotations

from typing import Final

from . import contract as m
from . import links, panels, query
from .board import Board
from .targets import column, now, over_time

CHOSEN: Final = f'{query.CLIENT}=~"$client"'
SHOWN: Final = f'{query.OUTCOME}!~"$probes"'
AGENTS: Final = f'{query.OUTCOME}!~"{query.PROBE}|no_call"'
STRUGGLED: Final = f'{query.OUTCOME}=~"{"|".join(query.STRUGGLED)}"'


def _struggling(by: str = "", window: str = query.RATE) -> str:
    """Return the share of sessions with tool calls in which the client went in circles or gave up."""
    part, whole = (
        query.rate(m.SESSION_ENDED.series, CHOSEN, which, by=by, window=window) for which in (STRUGGLED, AGENTS)
    )
    return query.share(part, whole)


def went(b: Board) -> None:
    """Add outcomes of sessions, findings while they run, and clients."""
    by_outcome = query.legend(query.OUTCOME)
    b.bars(
        "Outcomes",
        "How ended sessions went, decided by the order, digests and failures of their calls. `gave_up`: the last calls "
        "failed; `looped`, `retry_storm`, `ping_pong`: the client went in circles. Registries and monitors (`probe`) "
        "are hidden unless the field *Probes* above shows them.",
        now(query.increase(m.SESSION_ENDED.series, CHOSEN, SHOWN, by=query.OUTCOME), by_outcome),
        panels.COUNT,
    )
    b.lines(
        "Ends by outcome",
        "The same over time. If trouble begins at a deploy, a tool or its description has changed.",
        [over_time(query.rate(m.SESSION_ENDED.series, CHOSEN, SHOWN, by=query.OUTCOME), by_outcome)],
        panels.EVENTS,
        stacked=True,
    )
    b.add(
        panels.lines(
            "Struggling sessions",
            "Share of ended sessions with tool calls that went in circles or gave up: `otel-mcp sessions --outcome "
            "gave_up` lists the latest. On the right axis, findings in running sessions, per second.",
            [
                over_time(_struggling(), "struggled", ref="A"),
                over_time(
                    query.rate(m.SESSION_FINDINGS.series, CHOSEN, by=query.FINDING),
                    query.legend(query.FINDING),
                    ref="B",
                ),
            ],
            panels.SHARE,
        ).override_by_query("B", [panels.prop("unit", panels.EVENTS), panels.prop("custom.axisPlacement", "right")]),
        8,
    )
    window = query.RANGE
    every = query.increase(m.SESSION_ENDED.series, CHOSEN, SHOWN, by=query.CLIENT)
    gave_up = query.increase(m.SESSION_ENDED.series, CHOSEN, f'{query.OUTCOME}="gave_up"', by=query.CLIENT)
    silent = query.increase(m.SESSION_ENDED.series, CHOSEN, f'{query.OUTCOME}="no_call"', by=query.CLIENT)
    table = panels.rows(
        "Clients",
        "How the sessions of each client went. If one client struggles, look at its model or prompt; if all do, at the "
        "tools. A click on a name leads to what the client gets wrong.",
        [
            column("A", f"{every} > 0"),
            column("B", _struggling(query.CLIENT, window)),
            column("C", query.share(gave_up, every)),
            column("D", query.share(silent, every)),
        ],
        panels.SHARE,
    )
    whole = [panels.prop("unit", panels.WHOLE), panels.prop("decimals", 0)]
    table = table.override_by_name("Value #A", whole)
    table = table.override_by_name(query.CLIENT, [panels.prop("links", [links.client_tools(query.CLIENT)])])
    titles = {"Value #A": "sessions", "Value #B": "struggled", "Value #C": "gave up", "Value #D": "called nothing"}
    b.add(panels.columns(table, titles, (query.CLIENT, *titles)), 24, 7)


def restarts(b: Board) -> None:
    """Add sessions that restarts cut, those that came back, and those that are lost."""
    cut = query.increase(m.SESSION_INTERRUPTED.series, CHOSEN)
    back = query.increase(m.SESSION_RETURNED.series, CHOSEN)
    b.bars(
        "Cut, by cause",
        "Live sessions whose id the server refused as unknown. `restart`: the process is younger than the session; "
        "`replica`: the request reached another process than the one that keeps the session (routing is not sticky); "
        "`idle_reaper`: the server had closed the session.",
        now(query.increase(m.SESSION_INTERRUPTED.series, CHOSEN, by=query.CAUSE), query.legend(query.CAUSE)),
        panels.COUNT,
    )
    b.add(
        panels.bars(
            "Back within, and lost",
            "How soon clients of cut sessions came back, in the same session or one that continues it. *lost*: not "
            "back, or not yet; after 30 minutes they count as lost for good.",
            now(query.increase(m.SESSION_RETURNED.series, CHOSEN, by=query.WITHIN), query.legend(query.WITHIN)),
            panels.COUNT,
        ).with_target(now(f"clamp_min({cut} - ({back} or 0 * {cut}), 0)", "lost", ref="B")),
        8,
    )
    b.lines(
        "Cut and back",
        "Both per second, with deploys marked. A peak at each deploy is normal if clients come back.",
        [
            over_time(query.rate(m.SESSION_INTERRUPTED.series, CHOSEN), "cut", ref="A"),
            over_time(query.rate(m.SESSION_RETURNED.series, CHOSEN), "back", ref="B"),
        ],
        panels.EVENTS,
    )
    by = query.CLIENT
    cut, back = (query.increase(each.series, CHOSEN, by=by) for each in (m.SESSION_INTERRUPTED, m.SESSION_RETURNED))
    soon = query.increase(m.SESSION_RETURNED.series, CHOSEN, f'{query.WITHIN}="1m"', by=by)
    table = panels.rows(
        "Which clients come back",
        "The share of each client's cut sessions that came back, and within a minute. Clients that never come back "
        "need a server whose sessions survive a restart: see the runbook of MCPSessionsLostAfterDeploy.",
        [
            column("A", f"{cut} > 0"),
            column("B", f"clamp_max({query.share(back, cut)}, 1)"),
            column("C", f"clamp_max({query.share(soon, cut)}, 1)"),
        ],
        panels.SHARE,
    )
    table = table.override_by_name("Value #A", [panels.prop("unit", panels.WHOLE), panels.prop("decimals", 0)])
    titles = {"Value #A": "cut", "Value #B": "back", "Value #C": "within a minute"}
    b.add(panels.columns(table, titles, (query.CLIENT, *titles)), 24, 6)
