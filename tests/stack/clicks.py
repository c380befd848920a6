"""From an alert to the session, as one clicks: the links of alerts, dashboards and data sources."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, quote_plus, urlsplit

from . import dashboards

EXPLORER: Final = "session"
_LABEL: Final = re.compile(r"\{\{ \$labels\.(\w+) \| urlquery \}\}")
_EXTRACTED: Final = "extractFields"


def labels_of(url: str) -> set[str]:
    """Return the labels that an alert puts into its link."""
    return set(_LABEL.findall(url))


def filled(url: str, labels: Mapping[str, str]) -> str:
    """Return an alert's link with its labels, as Prometheus does it."""
    return _LABEL.sub(lambda match: quote_plus(labels[match[1]]), url)


def opened(url: str) -> tuple[str, dict[str, str]]:
    """Return which dashboard a link opens, and what it chooses there.

    Raises:
        ValueError: It leads to no dashboard of ours, or is one that a browser would not read.
    """
    parts = urlsplit(url)
    name = parts.path.removeprefix("/d/otel-mcp-")
    if name not in dashboards.load() or re.search(r"[\s{}]", url):
        raise ValueError(url)
    return name, {key.removeprefix("var-"): value for key, value in parse_qsl(parts.query, strict_parsing=True)}


def ways_on(name: str) -> Iterator[str]:
    """Yield the panels of a dashboard from which a click opens a trace in the explorer."""
    board = dashboards.load()[name]
    yield from (query.where for query in dashboards.queries(name, board) if query.exemplars)
    for panel in dashboards.panels(board):
        if "var-trace_id=" in json.dumps(panel):
            yield f"{name}: {panel['title']}"


def session_panel() -> dict[str, Any]:
    """Return the panel of the explorer that names the session of a trace."""
    board = dashboards.load()[EXPLORER]
    (found,) = (panel for panel in dashboards.panels(board) if _EXTRACTED in json.dumps(panel))
    return found


def sessions_in(attributes: str) -> set[str]:
    """Return the sessions that this panel reads from a span's attributes, which are JSON as Jaeger tells them."""
    (options,) = (each["options"] for each in session_panel()["transformations"] if each["id"] == _EXTRACTED)
    # A name of a group is written otherwise in JavaScript.
    pattern = options["regExp"].strip("/").replace("(?<", "(?P<")
    return set(re.findall(pattern, attributes))
