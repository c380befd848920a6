"""The kinds of panels in use, each set up once.

The description of a panel says what it shows and what to do about it. Only panels whose alert has
the same threshold are coloured by threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    logs,
    stat,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models

from .query import HEADS
from .targets import JAEGER, LOKI, PROMETHEUS

PER_SECOND: Final = "reqps"
"""Requests and calls."""
OPERATIONS: Final = "ops"
"""Operations of a store, per second."""
EVENTS: Final = "eps"
"""Sessions, keys, spans and other events, per second."""
SECONDS: Final = "s"
SHARE: Final = "percentunit"
COUNT: Final = "short"
WHOLE: Final = "locale"
"""Counts in bars and tables, with all their digits."""
BYTES: Final = "bytes"

Target = Builder[Any]


def thresholds(*steps: tuple[float, str]) -> dashboard.ThresholdsConfig:
    """Return green below the first step, then each step's colour from its value on."""
    all_steps = [models.Threshold(color="green", value=None)]
    all_steps += [models.Threshold(color=color, value=value) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(all_steps)


def number(title: str, description: str, target: Target, unit: str, *, nothing: str = "no data") -> stat.Panel:
    """Return one number with its recent past in the background; `nothing` is the text without data."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .with_target(target)
        .unit(unit)
        .no_value(nothing)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .color_scheme(fixed("text"))
    )


def lines(
    title: str, description: str, targets: Sequence[Target], unit: str, *, stacked: bool = False
) -> timeseries.Panel:
    """Return lines over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .targets(list(targets))
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(10)
        .show_points(common_models.VisibilityMode.AUTO)
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["mean", "max"])
        )
    )
    if stacked:
        mode = common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A")
        panel = panel.stacking(mode).fill_opacity(40)
    return panel


def heat(title: str, description: str, target: Target, unit: str) -> heatmap.Panel:
    """Return a histogram over time, with exemplars as dots."""
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .with_target(target)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(heatmap_models.HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_values(heatmap.CellValues().unit(COUNT))
        .unit(unit)
        .show_legend()
        .tooltip(heatmap.HeatmapTooltip().mode(common_models.TooltipDisplayMode.SINGLE))
        .exemplars_color("rgba(115,191,255,0.9)")
    )


def bars(title: str, description: str, target: Target, unit: str) -> bargauge.Panel:
    """Return one bar per series."""
    panel = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .with_target(target)
        .unit(unit)
        .min(0)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .color_scheme(fixed("blue"))
    )
    return panel.unit(WHOLE).decimals(0) if unit == COUNT else panel  # Prometheus extrapolates increases.


def rows(title: str, description: str, targets: Sequence[Target], unit: str) -> table.Panel:
    """Return a table of several instant queries, joined on their labels."""
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(PROMETHEUS)
        .targets(list(targets))
        .unit(unit)
        .filterable(True)
        .with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    )
    return panel.unit(WHOLE).decimals(0) if unit == COUNT else panel


def found(title: str, description: str, target: Target) -> table.Panel:
    """Return a table of traces; each row's id opens the trace."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(JAEGER)
        .with_target(target)
        .unit(SECONDS)
        .filterable(True)
    )


def lines_of_text(title: str, description: str, target: Target) -> logs.Panel:
    """Return log records, newest first, with their details."""
    return (
        logs.Panel()
        .title(title)
        .description(description)
        .datasource(LOKI)
        .with_target(target)
        .show_time(True)
        .wrap_log_message(True)
        .enable_log_details(True)
        .sort_order(common_models.LogsSortOrder.DESCENDING)
        .dedup_strategy(common_models.LogsDedupStrategy.NONE)
    )


def note(title: str, content: str) -> text.Panel:
    """Return a panel with text."""
    return text.Panel().title(title).description(title).content(content).transparent(True)


def fixed(color: str) -> dashboard.FieldColor:
    """Return one colour, whatever the value."""
    return dashboard.FieldColor().mode(models.FieldColorModeId.FIXED).fixed_color(color)


def columns(panel: table.Panel, names: dict[str, str], order: Sequence[str]) -> table.Panel:
    """Name the columns of a joined table, order them, and drop the time; labels have names of their own."""
    index = {name: position for position, name in enumerate(order)}
    # Overrides and links still find a renamed column by its label.
    heads = {label: head for label, head in HEADS.items() if label in index} | names
    options = {"excludeByName": {"Time": True}, "renameByName": heads, "indexByName": index}
    return panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=options))


def prop(name: str, value: object) -> models.DynamicConfigValue:
    """Return one property of a field override."""
    return models.DynamicConfigValue(id_val=name, value=value)


def link(title: str, url: str, *, new_tab: bool = False) -> dict[str, object]:
    """Return a data link for a field override."""
    return {"title": title, "url": url, "targetBlank": new_tab}
