"""What a server costs the model: a row of the dashboard of tools."""

from __future__ import annotations

from typing import Final

from . import contract as m
from . import panels, query, tenants
from .board import Board
from .targets import column, now, over_time

CHOSEN: Final = f'{query.TOOL}=~"$tool"'
LEGEND_TOOL: Final = query.legend(query.TOOL)


def cost(b: Board) -> None:
    """Add the catalogue, the answers, and which tools nobody calls."""
    b.lines(
        "Result size by tool, 95th percentile",
        "What a call costs the model's context, at about four bytes a token. Trim or page what is large.",
        [over_time(query.quantile(0.95, m.TOOL_RESULT_SIZE, CHOSEN, tenants.CHOSEN, by=query.TOOL), LEGEND_TOOL)],
        panels.BYTES,
        width=12,
    )
    b.bars(
        "Bytes answered",
        "Which tools filled the contexts in the range on screen: size times calls.",
        now(
            f"topk(10, {query.increase(m.TOOL_RESULT_SIZE.sum, CHOSEN, tenants.CHOSEN, by=query.TOOL)})",
            LEGEND_TOOL,
        ),
        panels.BYTES,
        width=12,
    )
    b.lines(
        "Catalogue",
        "What every conversation reads before its first call: the definitions of all tools, median of what clients "
        "got. A step up: see the event `catalogue.changed`.",
        [over_time(query.quantile(0.5, m.CATALOGUE_SIZE, by=query.CLIENT), query.legend(query.CLIENT))],
        panels.BYTES,
    )
    given = query.quantile(0.5, m.SESSION_CONTEXT_SIZE, by=query.CLIENT)
    b.lines(
        "Given to the model by a session",
        "The catalogue and all results together, median of the sessions that ended. A model's window is some "
        "hundred thousand tokens, of about four bytes each; what is given early is read again with each step.",
        [over_time(given, query.legend(query.CLIENT))],
        panels.BYTES,
    )
    client = f'{query.CLIENT}=~"$client"'
    oversized = query.increase(m.TOOL_RESULT_OVERSIZED.series, CHOSEN, client, by=f"{query.TOOL}, {query.CLIENT}")
    none = f'label_replace(vector(0), "{query.TOOL}", "none", "", "")'
    b.bars(
        "Answers beyond what the host takes",
        "Its model got a part, or a file to read: page the tool's answers, or let it filter.",
        now(f"topk(10, {oversized} > 0) or {none}", query.legend(query.TOOL, query.CLIENT)),
        panels.COUNT,
    )
    size = f"max by ({query.TOOL}) ({query.select(m.DEFINITION_SIZE.series, CHOSEN)})"
    calls = query.increase(m.TOOL_CALLS.series, CHOSEN, by=query.TOOL)
    table = panels.rows(
        "Definitions and their use",
        "What each tool adds to the catalogue, and how often it was called in the range on screen: large and never "
        "called is what to take out, or to put behind another tool.",
        [column("A", size), column("B", calls)],
        panels.COUNT,
    ).decimals(0)
    table = table.override_by_name("Value #A", [panels.prop("unit", panels.BYTES)])
    names = {"Value #A": "definition", "Value #B": "calls"}
    b.add(panels.columns(table, names, (query.TOOL, *names)), 18)
    tools = f"max by ({query.SERVICE}) ({query.select(m.CATALOGUE_TOOLS.series)})"
    b.add(
        panels.number(
            "Tools that clients are shown",
            "In all catalogues together. Models choose worse among very many.",
            now(tools, query.legend(query.SERVICE)),
            panels.COUNT,
        ),
        6,
    )
