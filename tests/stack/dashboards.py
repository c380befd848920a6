"""The committed dashboards, read as data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).resolve().parents[2] / "grafana" / "dashboards"
BUILT_IN: Final = {"__rate_interval": "1m", "__range": "15m", "__interval": "10s"}
_VARIABLE: Final = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)")


@dataclass(frozen=True)
class Query:
    """One PromQL query of a dashboard."""

    where: str
    expr: str
    exemplars: bool
    instant: bool

    def filled(self, values: Mapping[str, str]) -> str:
        """Return the query with its variables replaced.

        Raises:
            KeyError: It has a variable that has no value.
        """
        known = BUILT_IN | dict(values)
        return _VARIABLE.sub(lambda match: known[match[1] or match[2]], self.expr)


def load() -> dict[str, dict[str, Any]]:
    """Return every dashboard by the name of its file."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every panel, rows and what is in them too."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels") or ()


def targets(panel: Mapping[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """Yield a panel's queries to one kind of data source."""
    for target in panel.get("targets") or ():
        source = target.get("datasource") or panel.get("datasource") or {}
        if source.get("type") == kind:
            yield target


def queries(name: str, dashboard: Mapping[str, Any]) -> Iterator[Query]:
    """Yield every PromQL query of a dashboard, of panels and annotations."""
    for panel in panels(dashboard):
        for target in targets(panel, "prometheus"):
            yield Query(
                where=f"{name}: {panel['title']} {target['refId']}",
                expr=target["expr"],
                exemplars=bool(target.get("exemplar")),
                instant=bool(target.get("instant")),
            )
    for annotation in dashboard["annotations"]["list"]:
        yield Query(f"{name}: annotation {annotation['name']}", annotation["expr"], False, False)


def log_queries(name: str, dashboard: Mapping[str, Any]) -> Iterator[Query]:
    """Yield every LogQL query of a dashboard."""
    for panel in panels(dashboard):
        for target in targets(panel, "loki"):
            yield Query(f"{name}: {panel['title']} {target['refId']}", target["expr"], False, False)


def variables(dashboard: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a dashboard's variables by name."""
    return {variable["name"]: variable for variable in dashboard["templating"]["list"]}
