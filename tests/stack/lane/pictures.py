"""Pictures of the dashboards, from the lane's own data.

Grafana is not here, so these are not its pixels: the queries, titles, units and layout are the
committed dashboards', the numbers are what Prometheus answers, the drawing is matplotlib's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, DateFormatter
from matplotlib.figure import Figure

from tests.stack import dashboards

from .ask import Prometheus
from .seen import VALUES
from .units import written

WIDTH: Final = 24
INCHES: Final = (0.62, 0.42)
"""One unit of Grafana's grid."""
BACKGROUND, PANEL, INK, PALE = "#111217", "#181b1f", "#ccccdc", "#8e8e9c"
COLORS: Final = (
    *("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c"),
    *("#b877d9", "#8ab8ff", "#ffa6b0", "#96d98d", "#fade2a"),
)
LONGEST: Final = 34
_MISSING: Final = re.compile(r"\{\{\w+\}\}")
"""A label that a series lacks; Grafana leaves it out."""
LINES: Final = 8


class Pictures:
    """Draws dashboards over a range of time."""

    def __init__(self, prometheus: Prometheus, start: float, end: float) -> None:
        self._prometheus = prometheus
        self._start, self._end = start, end

    def draw(self, name: str, path: Path) -> None:
        """Draw one dashboard into a PNG file."""
        board = dashboards.load()[name]
        panels = [panel for panel in dashboards.panels(board) if self._is_drawn(panel)]
        while panels[-1]["type"] == "row":
            panels.pop()
        height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
        figure = Figure(figsize=(WIDTH * INCHES[0], (height + 1) * INCHES[1]), dpi=80, facecolor=BACKGROUND)
        title = f"{board['title']}   {datetime.fromtimestamp(self._end):%H:%M}"
        figure.text(0.012, 1 - 0.6 / (height + 1), title, color=INK, fontsize=13, va="center")
        for panel in panels:
            place = panel["gridPos"]
            x, w = place["x"] / WIDTH, place["w"] / WIDTH
            y, h = 1 - (place["y"] + 1 + place["h"]) / (height + 1), place["h"] / (height + 1)
            if panel["type"] == "row":
                figure.text(x + 0.012, y + h / 2, panel["title"], color=INK, fontsize=10.5, va="center", weight="bold")
                continue
            card = figure.add_axes((x + 0.004, y + 0.004, w - 0.008, h - 0.008), facecolor=PANEL)
            card.set(xticks=[], yticks=[])
            card.spines[:].set_color("#2c3235")
            unit = 1 / (height + 1)
            figure.text(x + 0.012, y + h - 0.75 * unit, panel["title"], color=INK, fontsize=8.5, va="center")
            left, foot = (0.045, 0.8) if panel["type"] in ("timeseries", "heatmap") else (0.012, 0.3)
            space = (x + left, y + foot * unit, w - left - 0.012, h - (foot + 1.4) * unit)
            axes = figure.add_axes(space, facecolor=PANEL)
            axes.tick_params(colors=PALE, labelsize=7, length=2)
            axes.spines[:].set_visible(False)
            _KINDS[panel["type"]](self, panel, axes)
        figure.savefig(path, facecolor=BACKGROUND)

    @staticmethod
    def _is_drawn(panel: Mapping[str, Any]) -> bool:
        return panel["type"] == "row" or any(dashboards.targets(panel, "prometheus"))

    def _asked(self, panel: Mapping[str, Any], *, over_time: bool) -> list[tuple[str, Mapping[str, str], Any]]:
        """Return name, labels and values of everything a panel's queries yield."""
        found: list[tuple[str, Mapping[str, str], Any]] = []
        for target in dashboards.targets(panel, "prometheus"):
            expr = dashboards.Query("", target["expr"], False, False).filled(VALUES)
            if over_time:
                answer = self._prometheus.query_range(expr, self._start, self._end)
            else:
                answer = self._prometheus.query(expr, self._end)
            for series in answer:
                labels = series["metric"]
                name = target.get("legendFormat") or ""
                for label, value in labels.items():
                    name = name.replace(f"{{{{{label}}}}}", value)
                name = _MISSING.sub("", name).strip()
                found.append((name[:LONGEST] or target["refId"], labels, series.get("values") or series["value"]))
        return found

    def _stat(self, panel: Mapping[str, Any], axes: Axes) -> None:
        axes.set_axis_off()
        series = self._asked(panel, over_time=True)
        unit = panel["fieldConfig"]["defaults"]["unit"]
        values = [float(value) for _, _, points in series[:1] for _, value in points if value != "NaN"]
        if not values:
            return
        axes.plot(values, color=COLORS[2], linewidth=1)
        axes.fill_between(range(len(values)), values, color=COLORS[2], alpha=0.15)
        axes.set_ylim(0, max(values) * 2.4 or 1)
        text = {"Session store": {0: "answers", 1: "degraded"}}.get(panel["title"], {}).get(int(values[-1]))
        axes.text(
            0.5, 0.6, text or written(values[-1], unit), color=INK, fontsize=20, ha="center", transform=axes.transAxes
        )

    def _lines(self, panel: Mapping[str, Any], axes: Axes) -> None:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        stacked = panel["fieldConfig"]["defaults"]["custom"].get("stacking", {}).get("mode") == "normal"
        below: dict[float, float] = {}
        for index, (name, _, points) in enumerate(self._asked(panel, over_time=True)):
            color = COLORS[index % len(COLORS)]
            times = [datetime.fromtimestamp(at) for at, _ in points]
            floor = [below.get(at, 0.0) if stacked else 0.0 for at, _ in points]
            tops = [base + float(value) for base, (_, value) in zip(floor, points, strict=True)]
            below.update({at: top for (at, _), top in zip(points, tops, strict=True)})
            axes.plot(times, tops, color=color, linewidth=1, label=name if index < LINES else None)
            axes.fill_between(times, floor, tops, color=color, alpha=0.35 if stacked else 0.06, linewidth=0)
        self._time_axis(axes)
        axes.yaxis.set_major_formatter(lambda value, _: written(value, unit))
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        if axes.lines:
            axes.legend(fontsize=6, labelcolor=INK, frameon=False, loc="upper left", ncols=2)

    def _heat(self, panel: Mapping[str, Any], axes: Axes) -> None:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        found = sorted(self._asked(panel, over_time=True), key=lambda series: float(series[1]["le"]))
        below: dict[float, float] = {}
        cells: list[tuple[str, dict[float, float]]] = []
        for _, labels, points in found:
            row = {at: float(value) - below.get(at, 0.0) for at, value in points}
            below.update({at: float(value) for at, value in points})
            cells.append((labels["le"], row))
        used = [index for index, (_, row) in enumerate(cells) if any(value > 0 for value in row.values())]
        cells = cells[max(0, min(used, default=0) - 1) : max(used, default=0) + 2]
        times = sorted({at for _, row in cells for at in row})
        grid = [[max(0.0, row.get(at, 0.0)) or float("nan") for at in times] for _, row in cells]
        if grid and times:
            edges = [datetime.fromtimestamp(at) for at in times]
            axes.pcolormesh(edges, range(len(grid)), grid, cmap="inferno", shading="nearest")
        axes.set_yticks(range(len(cells)), [written(float(le), unit) for le, _ in cells])
        self._time_axis(axes)

    def _bars(self, panel: Mapping[str, Any], axes: Axes) -> None:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        decimals = panel["fieldConfig"]["defaults"].get("decimals")
        found = sorted(((float(value[1]), name) for name, _, value in self._asked(panel, over_time=False)))[-LINES:]
        axes.barh([name for _, name in found], [value for value, _ in found], color=COLORS[2], height=0.6)
        for index, (value, name) in enumerate(found):
            axes.text(0, index, f" {name}  {written(value, unit, decimals)}", color=INK, fontsize=7, va="center")
        axes.set(xticks=[], yticks=[])

    def _table(self, panel: Mapping[str, Any], axes: Axes) -> None:
        if any(each["id"] == "groupingToMatrix" for each in panel["transformations"]):
            return self._matrix(panel, axes)
        options = next(t["options"] for t in panel["transformations"] if t["id"] == "organize")
        units = {
            o["matcher"]["options"]: p["value"] for o in _overrides(panel) for p in o["properties"] if p["id"] == "unit"
        }
        targets = list(dashboards.targets(panel, "prometheus"))
        decimals = panel["fieldConfig"]["defaults"].get("decimals")
        rows: dict[tuple[str, ...], dict[str, str]] = {}
        columns = sorted(options["indexByName"], key=lambda name: options["indexByName"][name])
        for target in targets:
            key = f"Value #{target['refId']}" if len(targets) > 1 else "Value"
            unit = units.get(key) or panel["fieldConfig"]["defaults"]["unit"]
            for _, labels, value in self._asked({**panel, "targets": [target]}, over_time=False):
                identity = tuple(labels.get(name, "") for name in columns if not name.startswith("Value"))
                rows.setdefault(identity, dict(labels))[key] = written(float(value[1]), unit, decimals)
        heads = [options["renameByName"].get(name, name) for name in columns]
        self._cells(heads, [[row.get(name, "") for name in columns] for row in rows.values()], axes)
        return None

    def _matrix(self, panel: Mapping[str, Any], axes: Axes) -> None:
        options = next(t["options"] for t in panel["transformations"] if t["id"] == "groupingToMatrix")
        rows: dict[str, dict[str, str]] = {}
        defaults = panel["fieldConfig"]["defaults"]
        for _, labels, value in self._asked(panel, over_time=False):
            row, column = (labels.get(options[field], "") for field in ("rowField", "columnField"))
            rows.setdefault(row, {})[column] = written(float(value[1]), defaults["unit"], defaults.get("decimals"))
        columns = sorted({column for row in rows.values() for column in row})
        lines = [[name, *(row.get(column, "") for column in columns)] for name, row in rows.items()]
        heads = next(t["options"] for t in panel["transformations"] if t["id"] == "organize")["renameByName"]
        self._cells([*heads.values(), *columns], lines, axes)

    def _cells(self, heads: list[str], lines: list[list[str]], axes: Axes) -> None:
        axes.set_axis_off()
        lines = [[cell[:LONGEST] for cell in line] for line in lines[:LINES]]
        table = axes.table([heads, *lines], loc="upper left", edges="horizontal", cellLoc="left")
        table.auto_set_font_size(False)
        table.set_fontsize(7.5)
        for (line, _), cell in table.get_celld().items():
            cell.set(edgecolor="#2c3235")
            cell.get_text().set_color(PALE if line == 0 else INK)

    def _time_axis(self, axes: Axes) -> None:
        axes.set_xlim(datetime.fromtimestamp(self._start), datetime.fromtimestamp(self._end))
        axes.xaxis.set_major_locator(AutoDateLocator(maxticks=5))
        axes.xaxis.set_major_formatter(DateFormatter("%H:%M"))
        axes.grid(color="#2c3235", linewidth=0.5)


def _overrides(panel: Mapping[str, Any]) -> list[dict[str, Any]]:
    return panel["fieldConfig"].get("overrides") or []


_KINDS: Final[dict[str, Callable[[Pictures, Mapping[str, Any], Axes], None]]] = {
    "stat": Pictures._stat,
    "timeseries": Pictures._lines,
    "heatmap": Pictures._heat,
    "bargauge": Pictures._bars,
    "table": Pictures._table,
}
