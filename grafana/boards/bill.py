"""What a server costs the model's context: a row of the dashboard of tools."""

from __future__ import annotations

from typing import Final

from . import contract as m
from . import panels, query, tenants
from .board import Board
from .targets import column, now, over_time

CHOSEN: Final = f'{query.TOOL}=~"$tool"'
LEGEND_TOOL: Final = query.legend(query.TOOL)


def cost(b: Board) -> None:
    """Add the catalogue, the results, and tools that are never called."""
    b.lines(
        "Result size by tool, 95th percentile",
        "What a call costs the model's context, at about four bytes a token. Shorten large results, or split them into "
        "pages.",
        [over_time(query.quantile(0.95, m.TOOL_RESULT_SIZE, CHOSEN, tenants.CHOSEN, by=query.TOOL), LEGEND_TOOL)],
        panels.BYTES,
        width=12,
    )
    b.bars(
        "Bytes answered",
        "The tools that filled contexts most in the selected time range: size times calls.",
        now(
            f"topk(10, {query.increase(m.TOOL_RESULT_SIZE.sum, CHOSEN, tenants.CHOSEN, by=query.TOOL)})",
            LEGEND_TOOL,
        ),
        panels.BYTES,
        width=12,
    )
    listed = query.rate(m.CATALOGUE_SIZE.sum, by=query.CLIENT)
    listings = query.rate(m.CATALOGUE_SIZE.count, by=query.CLIENT)
    b.lines(
        "Catalogue",
        "The definitions of all tools, which every conversation reads before its first call; mean of what clients got, "
        "which is exact where all got the same. If it jumps, see the event `catalogue.changed`.",
        [over_time(query.named(f"{listed} / ({listings} > 0)", query.CLIENT), query.legend(query.CLIENT))],
        panels.BYTES,
    )
    given = query.quantile(0.5, m.SESSION_CONTEXT_SIZE, by=query.CLIENT)
    b.lines(
        "Given to the model by a session",
        "The catalogue and all results together, median of ended sessions. A model's context is some hundred thousand "
        "tokens of about four bytes; it reads everything again at each step.",
        [over_time(query.named(given, query.CLIENT), query.legend(query.CLIENT))],
        panels.BYTES,
    )
    client = f'{query.CLIENT}=~"$client"'
    oversized = query.increase(m.TOOL_RESULT_OVERSIZED.series, CHOSEN, client, by=f"{query.TOOL}, {query.CLIENT}")
    none = f'label_replace(vector(0), "{query.TOOL}", "none", "", "")'
    b.bars(
        "Answers beyond what the host takes",
        "The model got a part of the result, or a file to read: split results into pages, or let the tool filter.",
        now(f"topk(10, {oversized} > 0) or {none}", query.legend(query.TOOL, query.CLIENT)),
        panels.COUNT,
    )
    size = f"max by ({query.TOOL}) ({query.select(m.DEFINITION_SIZE.series, CHOSEN)})"
    calls = query.increase(m.TOOL_CALLS.series, CHOSEN, by=query.TOOL)
    table = panels.rows(
        "Definitions and their use",
        "What each tool adds to the catalogue, and how often it was called in the selected time range: remove large "
        "tools that are never called, or move them behind another tool.",
        [column("A", size), column("B", calls)],
        panels.COUNT,
    )
    table = table.override_by_name("Value #A", [panels.prop("unit", panels.BYTES)])
    names = {"Value #A": "definition", "Value #B": "calls"}
    b.add(panels.columns(table, names, (query.TOOL, *names)), 18)
    tools = f"max by ({query.SERVICE}) ({query.select(m.CATALOGUE_TOOLS.series)})"
    b.add(
        panels.number(
            "Tools that clients are shown",
            "In all catalogues together. Models choose worse among many tools.",
            now(tools, query.legend(query.SERVICE)),
            panels.COUNT,
        ),
        6,
    )
