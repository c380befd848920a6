"""Write the dashboards, and the alerts as Kubernetes takes them: `python -m grafana.generate`.

Needs `grafana-foundation-sdk==0.0.21` (a bare install takes an older generation
with a higher number). The JSON is committed; `tests/stack` generates it again and compares.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Final

from .boards import audit, overview, pipeline, resources, session, sessions, tools

FOLDER: Final = Path(__file__).parent / "dashboards"
ALERTS: Final = Path(__file__).parent / "alerts"
RULES: Final = Path(__file__).parents[1] / "collector" / "kubernetes" / "parts" / "signals" / "rules.yaml"

BOARDS: Final = {
    "overview": overview.board,
    "sessions": sessions.board,
    "tools": tools.board,
    "resources": resources.board,
    "session": session.board,
    "audit": audit.board,
    "pipeline": pipeline.board,
}
"""File name -> what builds it."""


def generate() -> dict[Path, str]:
    """Return what every file should hold."""
    return {FOLDER / f"{name}.json": build().json() for name, build in BOARDS.items()} | {RULES: rules()}


def rules() -> str:
    """Return each file of `alerts` as a PrometheusRule: the Prometheus Operator takes no plain files."""
    text = "# Made of grafana/alerts by `python -m grafana.generate`.\n"
    for path in sorted(ALERTS.glob("*.yaml")):
        text += "---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n"
        text += f"metadata:\n  name: otel-mcp-{path.stem}\nspec:\n"
        text += textwrap.indent(path.read_text(encoding="utf-8"), "  ")
    return text


if __name__ == "__main__":
    for path, content in generate().items():
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
