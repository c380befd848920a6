"""The dashboards against Grafana's own types: `python -m tests.stack.schema`.

TypeScript reads the committed JSON as literals of `@grafana/schema`'s types, options and field
configuration of every panel included, so that a misspelt or misplaced key does not compile. The
package and the compiler are installed with the machine's npm, into the cache.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from . import dashboards
from .lane.paths import CACHE

SCHEMA: Final = "13.2.3"
TYPESCRIPT: Final = "5.9.3"
FOLDER: Final = CACHE / f"grafana-schema-{SCHEMA}-{TYPESCRIPT}"
_PANELS: Final = {
    "timeseries": "TimeSeries",
    "stat": "Stat",
    "bargauge": "BarGauge",
    "heatmap": "Heatmap",
    "table": "Table",
    "text": "Text",
    "logs": "Logs",
}
"""Types of panels that the package knows, with what it calls them."""
_WITH_FIELDS: Final = {"timeseries", "heatmap", "table"}
"""Those that have a field configuration of their own."""
_UNKNOWN: Final = {"row", "alertlist", "traces"}
"""Those that it says nothing about."""
_OF_PROMETHEUS: Final = {"expr", "titleFormat"}
"""What its data source adds to an annotation; the schema leaves such things to data sources."""
_HEAD: Final = """\
import type * as schema from '@grafana/schema';
// JSON leaves out what has a default, and knows no enumerations: their values are texts.
type Json<T> = T extends string ? `${T}` : T extends readonly (infer E)[] ? Json<E>[]
  : T extends object ? { [K in keyof T]?: Json<T[K]> } : T;
"""


class NoNode(Exception):
    """There is no npm on this machine, or the packages are not to be had."""


def installed() -> Path:
    """Return a folder with the package and the compiler.

    Raises:
        NoNode: It cannot be made here.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise NoNode("there is no node and npm on this machine")
    if not FOLDER.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="npm-") as work:
            quiet = ("--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", work)
            packages = (f"@grafana/schema@{SCHEMA}", f"typescript@{TYPESCRIPT}")
            command = [npm, "install", *quiet, *packages]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                raise NoNode(f"npm cannot install {' '.join(packages)}: {done.stderr[-500:]}")
            shutil.copytree(work, FOLDER)
    return FOLDER


def problems(boards: dict[str, dict[str, Any]]) -> list[str]:
    """Return what the compiler says against dashboards, by name of the file.

    Raises:
        NoNode: There is no compiler here.
    """
    folder = installed()
    with tempfile.TemporaryDirectory(dir=folder, prefix="check-") as work:
        for name, board in boards.items():
            (Path(work) / f"{name}.ts").write_text("\n".join(_typed(name, board)), encoding="utf-8")
        options = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022")
        compiler = folder / "node_modules" / "typescript" / "bin" / "tsc"
        sources = sorted(path.name for path in Path(work).glob("*.ts"))
        command = ["node", str(compiler), *options, "--pretty", "false", *sources]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout.splitlines() if done.returncode else []


def _typed(name: str, board: dict[str, Any]) -> Iterator[str]:
    yield _HEAD
    marks = [
        {key: value for key, value in mark.items() if key not in _OF_PROMETHEUS}
        for mark in board["annotations"]["list"]
    ]
    yield _literal("board", "Json<schema.Dashboard>", board | {"annotations": {"list": marks}})
    for panel in dashboards.panels(board):
        kind, title = panel["type"], f"{name}: {panel['title']}"
        if kind in _UNKNOWN:
            continue
        if kind not in _PANELS:
            yield f"const unknown: never = {json.dumps(f'{title} is a {kind}')};"
            continue
        module = f"@grafana/schema/dist/esm/raw/composable/{kind}/panelcfg/x/{_PANELS[kind]}PanelCfg_types.gen"
        yield f"// {title}"
        yield _literal(f"options{panel['id']}", f"Json<import('{module}').Options>", panel.get("options") or {})
        if kind in _WITH_FIELDS:
            custom = panel["fieldConfig"]["defaults"].get("custom") or {}
            yield _literal(f"fields{panel['id']}", f"Json<import('{module}').FieldConfig>", custom)


def _literal(name: str, kind: str, value: Any) -> str:
    return f"export const {name}: {kind} = {json.dumps(value, indent=1)};"


def main() -> int:
    """Check the committed dashboards; loudly not, where that cannot be done."""
    try:
        found = problems(dashboards.load())
    except NoNode as missing:
        print(f"\n*** NOT PROVEN: the dashboards against @grafana/schema: {missing}\n", file=sys.stderr)
        return 0
    print("\n".join(found) or f"dashboards: as @grafana/schema {SCHEMA} has them")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
