"""Builds a dashboard: places and numbers its panels, and adds variables, links and annotations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from . import panels, query
from .contract import CLIENT_REQUESTS, OPERATION_DURATION, SESSION_LOCAL
from .panels import Target
from .targets import PROMETHEUS, over_time

WIDTH: Final = 24
ANYTHING: Final = ".*"
TAG: Final = "otel-mcp"


class Board:
    """Build one dashboard.

    Args:
        uid: Its stable id, part of its address.
        title: Its name in the list.
        description: What it is for.
    """

    def __init__(self, uid: str, title: str, description: str) -> None:
        self.uid = uid
        self._x = self._y = self._row_height = self._panels = 0
        self._dashboard = (
            dashboard.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags([TAG])
            .readonly()
            .time("now-1h", "now")
            .refresh("30s")
            .timezone("browser")
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .link(_other_dashboards())
            .with_variable(_datasource("datasource", "Metrics", "prometheus"))
        )

    def traces(self) -> Board:
        """Add a variable for the data source of traces."""
        self._dashboard.with_variable(_datasource("traces", "Traces", "jaeger"))
        return self

    def logs(self) -> Board:
        """Add a variable for the data source of logs."""
        self._dashboard.with_variable(_datasource("logs", "Logs", "loki"))
        return self

    def choice(self, name: str, label: str, **values: str) -> Board:
        """Add a variable with named values; the first one is the default."""
        options = [
            models.VariableOption(selected=not index, text=text, value=value)
            for index, (text, value) in enumerate(values.items())
        ]
        variable = dashboard.CustomVariable(name).label(label).options(options).current(options[0])
        self._dashboard.with_variable(variable.values(", ".join(f"{text} : {value}" for text, value in values.items())))
        return self

    def jaeger_address(self) -> Board:
        """Add a variable for the address of Jaeger's own pages, for links in tables."""
        return self.textbox("jaeger", "Jaeger's address", "http://localhost:16686")

    def select(self, *names: str) -> Board:
        """Add variables by name: environment, service, tool, prompt, client, tenant."""
        for name in names:
            self._dashboard.with_variable(_VARIABLES[name]())
        return self

    def service(self) -> Board:
        """Add a variable for one service, as a search for traces supports no pattern."""
        variable = _values_of("service", query.SERVICE, OPERATION_DURATION.count)
        self._dashboard.with_variable(variable)
        return self

    def textbox(self, name: str, label: str, default: str = "") -> Board:
        """Add a field to type into."""
        variable = dashboard.TextBoxVariable(name).label(label).default_value(default)
        current = models.VariableOption(text=default, value=default)
        self._dashboard.with_variable(variable.current(current))
        return self

    def mark_deploys(self) -> Board:
        """Add annotations for new versions of a service and for firing alerts."""
        by = f"{query.SERVICE}, service_version"
        # Not `target_info`, which has no `service_name` if Prometheus scrapes.
        series = query.select(SESSION_LOCAL.series)
        seen, before = f"count by ({by}) ({series})", f"count by ({by}) ({series} offset 5m)"
        # After a gap in the samples of a service, versions from before the gap are not new.
        gap = f"(count by ({by}) (last_over_time({series}[1h] offset 5m)) unless on ({query.SERVICE}) {before})"
        firing = '{alertstate="firing", alertname=~"MCP.*|Collector.*"}'
        for name, expr, title, color in (
            ("Deploys", f"{seen} unless {before} unless {gap}", "{{service_name}} {{service_version}}", "blue"),
            ("Alerts", f"ALERTS{firing}", "{{alertname}}", "red"),
        ):
            self._dashboard.annotation(
                dashboard.AnnotationQuery()
                .name(name)
                .datasource(PROMETHEUS)
                .enable(True)
                .icon_color(color)
                .expr(expr)
                .title_format(title)
            )
        return self

    def row(self, title: str) -> Board:
        """Begin a row with a heading."""
        self._break()
        self._panels += 1
        place = models.GridPos(h=1, w=WIDTH, x=0, y=self._y)
        self._dashboard.with_row(dashboard.Row(title).id(self._panels).grid_pos(place))
        self._y += 1
        return self

    def add(self, panel: Any, width: int, height: int = 8) -> Board:
        """Place a panel right of the last one, or below if there is no room."""
        if self._x + width > WIDTH:
            self._break()
        self._panels += 1
        place = models.GridPos(h=height, w=width, x=self._x, y=self._y)
        self._dashboard.with_panel(panel.id(self._panels).grid_pos(place))
        self._x += width
        self._row_height = max(self._row_height, height)
        return self

    def number(self, title: str, description: str, target: Target, unit: str, *, nothing: str = "no data") -> Board:
        """Add one number, a quarter of a row wide."""
        return self.add(panels.number(title, description, target, unit, nothing=nothing), 6, 4)

    def lines(
        self,
        title: str,
        description: str,
        targets: Sequence[Target],
        unit: str,
        *,
        width: int = 8,
        stacked: bool = False,
    ) -> Board:
        """Add a graph over time."""
        return self.add(panels.lines(title, description, targets, unit, stacked=stacked), width)

    def rates(
        self,
        title: str,
        description: str,
        counter: str,
        *matchers: str,
        by: str,
        unit: str = panels.PER_SECOND,
        width: int = 8,
    ) -> Board:
        """Add the rates of a counter over time, stacked, a line for each value of the label `by`."""
        target = over_time(query.named(query.rate(counter, *matchers, by=by), by), query.legend(by))
        return self.lines(title, description, [target], unit, width=width, stacked=True)

    def bars(self, title: str, description: str, target: Target, unit: str, *, width: int = 8) -> Board:
        """Add a bar for each series."""
        return self.add(panels.bars(title, description, target, unit), width)

    def json(self) -> str:
        """Return the dashboard as JSON, the same bytes every time."""
        model = json.loads(JSONEncoder().encode(self._dashboard.build()))
        # The SDK leaves out an empty list, which some readers require.
        model["annotations"].setdefault("list", [])
        # The SDK writes these on every variable, but only interval variables have them.
        for variable in model["templating"]["list"]:
            for name in ("auto", "auto_count", "auto_min"):
                variable.pop(name, None)
        # Off by default, and removed from the newest Grafana.
        for panel in model["panels"]:
            panel.get("options", {}).pop("footer", None)
        return json.dumps(model, sort_keys=True, indent=2) + "\n"

    def _break(self) -> None:
        self._x, self._y, self._row_height = 0, self._y + self._row_height, 0


def _other_dashboards() -> dashboard.DashboardLink:
    return (
        dashboard.DashboardLink("MCP")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
    )


def _datasource(name: str, label: str, kind: str) -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable(name).label(label).type(kind)


def _values_of(name: str, label: str, series: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(PROMETHEUS)
        .query(f"label_values({series}, {label})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )


def _any_of(name: str, label: str, series: str) -> dashboard.QueryVariable:
    everything = models.VariableOption(selected=True, text="All", value="$__all")
    variable = _values_of(name, label, series)
    return variable.multi(True).include_all(True).all_value(ANYTHING).current(everything)


def _environment() -> dashboard.QueryVariable:
    return _any_of("environment", query.ENVIRONMENT, OPERATION_DURATION.count)


def _service() -> dashboard.QueryVariable:
    series = f'{OPERATION_DURATION.count}{{{query.ENVIRONMENT}=~"$environment"}}'
    return _any_of("service", query.SERVICE, series)


def _tool() -> dashboard.QueryVariable:
    return _any_of("tool", query.TOOL, query.select(OPERATION_DURATION.count))


def _prompt() -> dashboard.QueryVariable:
    return _any_of("prompt", query.PROMPT, query.select(OPERATION_DURATION.count))


def _tenant() -> dashboard.QueryVariable:
    return _any_of("tenant", query.TENANT, query.select(CLIENT_REQUESTS.series))


def _client() -> dashboard.QueryVariable:
    return _any_of("client", query.CLIENT, query.select(CLIENT_REQUESTS.series))


_VARIABLES: Final = {
    "environment": _environment,
    "service": _service,
    "tool": _tool,
    "prompt": _prompt,
    "client": _client,
    "tenant": _tenant,
}
