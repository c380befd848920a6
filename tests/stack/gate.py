"""What every dashboard must keep to; each rule yields what is wrong with one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from grafana.boards import contract, external

from . import dashboards
from .promql import ask, ranges

Dashboard = dict[str, Any]
WIDTH: Final = 24
KNOWN: Final = external.SERIES | {name: labels for m in contract.METRICS for name, labels in m.all_series()}
_FILLED: Final = {
    "environment": ".*",
    "service": ".*",
    "tool": ".*",
    "prompt": ".*",
    "client": ".*",
    "tenant": ".*",
    "probes": "probe",
}
_NO_UNIT: Final = {"row", "text", "alertlist", "traces", "logs"}
_RANGES: Final = {"$__rate_interval", "$__range", "1h"}
"""`1h`: the leak panel compares whole hours; everything else follows the screen."""


def parses(name: str, board: Dashboard) -> Iterator[str]:
    """Every query is PromQL, and uses no variable that the dashboard lacks."""
    for query in dashboards.queries(name, board):
        if error := _parse_error(query):
            yield f"{query.where}: {error!r}"


def _parse_error(query: dashboards.Query) -> Exception | None:
    try:
        ask(query.filled(_FILLED))
    except (ValueError, KeyError) as error:
        return error
    return None


def names_what_exists(name: str, board: Dashboard) -> Iterator[str]:
    """Every series and label is one that somebody emits."""
    for query in dashboards.queries(name, board):
        yield from unknown_names(query.where, query.filled(_FILLED))


def unknown_names(where: str, expr: str) -> Iterator[str]:
    """Yield the series and labels of an expression that nobody emits."""
    asked = ask(expr)
    together: set[str] = set()
    for series, labels in asked.selectors:
        matching = [known for known in KNOWN if re.fullmatch(series, known)]
        if not matching:
            yield f"{where}: nobody emits {series}"
            continue
        allowed = frozenset[str]().union(*(KNOWN[known] for known in matching))
        together |= allowed
        if unknown := labels - allowed:
            yield f"{where}: {series} has no {sorted(unknown)}"
    if unknown := asked.grouped_by - together - {"le"}:
        yield f"{where}: nothing here has {sorted(unknown)}"


def follows_the_screen(name: str, board: Dashboard) -> Iterator[str]:
    """No fixed ranges: they miss most of the data of a long one, and have none in a short one."""
    for query in dashboards.queries(name, board):
        if fixed := ranges(query.expr) - _RANGES:
            yield f"{query.where}: fixed range {sorted(fixed)}"


def asks_the_chosen_sources(name: str, board: Dashboard) -> Iterator[str]:
    """Data sources are variables, so that the dashboard works where it is imported."""
    for panel in dashboards.panels(board):
        sources = [panel.get("datasource")] + [target.get("datasource") for target in panel.get("targets") or ()]
        for source in filter(None, sources):
            if source.get("uid") not in ("${datasource}", "${traces}", "${logs}"):
                yield f"{name}: {panel['title']} asks {source}"


def says_what_it_shows(name: str, board: Dashboard) -> Iterator[str]:
    """Title, description and unit are there."""
    for panel in dashboards.panels(board):
        if not panel.get("title"):
            yield f"{name}: panel {panel.get('id')} has no title"
        if panel["type"] == "row":
            continue
        if not panel.get("description"):
            yield f"{name}: {panel.get('title')} has no description"
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit")
        if panel["type"] not in _NO_UNIT and not unit:
            yield f"{name}: {panel.get('title')} has no unit"
        if unit == "ms":
            yield f"{name}: {panel.get('title')} is in milliseconds; everything here is in seconds"


def is_laid_out(name: str, board: Dashboard) -> Iterator[str]:
    """Ids are unique, nothing is too wide, nothing overlaps."""
    taken: dict[tuple[int, int], str] = {}
    ids: set[int] = set()
    for panel in dashboards.panels(board):
        title = panel.get("title", "?")
        if not panel.get("id") or panel["id"] in ids:
            yield f"{name}: {title} has no id of its own"
        ids.add(panel.get("id", 0))
        place = panel["gridPos"]
        if place["x"] + place["w"] > WIDTH:
            yield f"{name}: {title} is too wide"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (other := taken.setdefault((x, y), title)) != title:
                    yield f"{name}: {title} overlaps {other}"
                    return


def uses_its_variables(name: str, board: Dashboard) -> Iterator[str]:
    """Every variable is used, and every used one exists."""
    rest = {key: value for key, value in board.items() if key != "templating"}
    own = dashboards.variables(board)
    everything = json.dumps(rest) + json.dumps([variable.get("query") for variable in own.values()])
    used = {a or b for a, b in re.findall(r"\$\{(\w+)(?::\w+)?\}|\$([a-z]\w*)", everything)}
    for variable in own.keys() - used:
        yield f"{name}: variable {variable} is unused"
    for variable in used - own.keys():
        if not variable.startswith("__"):
            yield f"{name}: there is no variable {variable}"


def refreshes_its_variables(name: str, board: Dashboard) -> Iterator[str]:
    """Values of variables follow the time range; All means anything, even a missing label."""
    for variable in dashboards.variables(board).values():
        if variable["type"] != "query":
            continue
        if variable.get("refresh") != 2:
            yield f"{name}: variable {variable['name']} does not follow the time range"
        if variable.get("includeAll") and variable.get("allValue") != ".*":
            yield f"{name}: variable {variable['name']} leaves out series without the label"


def is_findable(name: str, board: Dashboard) -> Iterator[str]:
    """Address, tag and links are those that other dashboards count on; nobody edits it in place."""
    if board.get("uid") != f"otel-mcp-{name}":
        yield f"{name}: uid {board.get('uid')}"
    if "otel-mcp" not in board.get("tags", ()):
        yield f"{name}: no tag"
    if board.get("editable"):
        yield f"{name}: editable, though generated"
    links = re.findall(r"/d/(otel-mcp-\w+)", json.dumps(board))
    for link in set(links) - {f"otel-mcp-{other}" for other in dashboards.load()}:
        yield f"{name}: leads to {link}, which is not there"


RULES: Final[tuple[Callable[[str, Dashboard], Iterator[str]], ...]] = (
    parses,
    names_what_exists,
    follows_the_screen,
    asks_the_chosen_sources,
    says_what_it_shows,
    is_laid_out,
    uses_its_variables,
    refreshes_its_variables,
    is_findable,
)


def problems(name: str, board: Dashboard) -> list[str]:
    """Return everything that is wrong with a dashboard; without parsing there is nothing more to say."""
    return list(parses(name, board)) or [problem for rule in RULES for problem in rule(name, board)]
