"""What Grafana is told at its start: data sources that the dashboards mean, folders that exist."""

from __future__ import annotations

import re
from typing import Any

import pytest

pytest.importorskip("yaml")

import yaml

from . import dashboards
from .lane.paths import ROOT

FOLDER = ROOT / "grafana" / "provisioning"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def _datasources() -> dict[str, dict[str, Any]]:
    return {source["type"]: source for source in _read("datasources/datasources.yaml")["datasources"]}


def test_there_is_one_data_source_of_each_kind_that_dashboards_ask() -> None:
    wanted = {
        variable["query"]
        for board in dashboards.load().values()
        for variable in dashboards.variables(board).values()
        if variable["type"] == "datasource"
    }
    assert wanted == set(_datasources()) == {"prometheus", "jaeger"}


def test_data_sources_lead_to_each_other() -> None:
    sources = _datasources()
    uids = {source["uid"] for source in sources.values()}
    prometheus, jaeger = sources["prometheus"]["jsonData"], sources["jaeger"]["jsonData"]
    assert {
        link["datasourceUid"] for link in prometheus["exemplarTraceIdDestinations"] if "datasourceUid" in link
    } <= uids
    assert jaeger["tracesToMetrics"]["datasourceUid"] in uids
    opened = [link["url"] for link in prometheus["exemplarTraceIdDestinations"] if "url" in link]
    variables = dashboards.variables(dashboards.load()["session"])
    for url in opened:
        assert url.startswith("/d/otel-mcp-session?")
        assert set(re.findall(r"var-(\w+)=", url)) <= set(variables)


def test_dollars_of_grafana_are_escaped() -> None:
    text = (FOLDER / "datasources" / "datasources.yaml").read_text(encoding="utf-8")
    environment = set(COMPOSE["services"]["grafana"]["environment"])
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    unescaped = re.findall(r"(?<!\$)\$\{?(\w+)", "\n".join(lines))
    assert set(unescaped) <= environment


def test_intervals_are_the_same_everywhere() -> None:
    server = COMPOSE["services"]["server"]["environment"]
    prometheus = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text(encoding="utf-8"))
    seconds = f"{int(server['OTEL_METRIC_EXPORT_INTERVAL']) // 1000}s"
    assert _datasources()["prometheus"]["jsonData"]["timeInterval"] == seconds
    assert prometheus["global"]["evaluation_interval"] == seconds


def test_dashboards_are_mounted_where_they_are_looked_for() -> None:
    mounts = dict(volume.split(":")[1::-1] for volume in COMPOSE["services"]["grafana"]["volumes"])
    path = _read("dashboards/dashboards.yaml")["providers"][0]["options"]["path"]
    assert (ROOT / mounts[path]).resolve() == dashboards.FOLDER
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.removeprefix(f"{path}/").removesuffix(".json") in dashboards.load()
