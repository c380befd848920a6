"""The dashboards: generated, clean, and every rule able to say no."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.promtool import assert_promtool_takes

from . import dashboards, gate

NAMES = sorted(dashboards.load())
Spoil = Callable[[dict[str, Any]], None]


def _first(board: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(panel for panel in dashboards.panels(board) if panel["type"] == kind)


def _target(board: dict[str, Any]) -> dict[str, Any]:
    return _first(board, "timeseries")["targets"][0]


def _set_expr(expr: str) -> Spoil:
    return lambda board: _target(board).update(expr=expr)


MISTAKES: dict[str, tuple[Spoil, str]] = {
    "broken syntax": (_set_expr("sum(rate("), "Error"),
    "unknown series": (_set_expr("sum(mcp_server_operations)"), "nobody emits mcp_server_operations"),
    "unknown label": (_set_expr('sum(otel_mcp_session_active{session_id="1"})'), "has no ['session_id']"),
    "unknown grouping": (_set_expr("sum by (tool) (otel_mcp_session_active)"), "nothing here has ['tool']"),
    "fixed range": (_set_expr("sum(rate(otel_mcp_client_requests_total[5m]))"), "fixed range ['5m']"),
    "unknown variable": (_set_expr('otel_mcp_session_active{service_name=~"$cluster"}'), "cluster"),
    "fixed data source": (lambda b: _first(b, "stat").update(datasource={"uid": "abc"}), "asks {'uid': 'abc'}"),
    "no description": (lambda b: _first(b, "stat").pop("description"), "has no description"),
    "no unit": (lambda b: _first(b, "stat")["fieldConfig"]["defaults"].pop("unit"), "has no unit"),
    "milliseconds": (lambda b: _first(b, "stat")["fieldConfig"]["defaults"].update(unit="ms"), "in milliseconds"),
    "overlap": (lambda b: b["panels"][1]["gridPos"].update(b["panels"][0]["gridPos"]), "overlaps"),
    "too wide": (lambda b: b["panels"][0]["gridPos"].update(w=25), "too wide"),
    "id twice": (lambda b: b["panels"][1].update(id=b["panels"][0]["id"]), "no id of its own"),
    "unused variable": (
        lambda b: b["templating"]["list"].append({"name": "spare", "type": "textbox", "query": ""}),
        "variable spare is unused",
    ),
    "stale variable": (
        lambda b: dashboards.variables(b)["environment"].update(refresh=1),
        "does not follow the time range",
    ),
    "dead link": (lambda b: b.update(description="/d/otel-mcp-nowhere"), "leads to otel-mcp-nowhere"),
    "other address": (lambda b: b.update(uid="x"), "uid x"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_dashboard_keeps_every_rule(name: str) -> None:
    assert gate.problems(name, dashboards.load()[name]) == []


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_is_found(mistake: str) -> None:
    spoil, complaint = MISTAKES[mistake]
    board = copy.deepcopy(dashboards.load()["overview"])
    spoil(board)
    assert any(complaint in problem for problem in gate.problems("overview", board))


def test_generating_again_changes_nothing() -> None:
    from grafana.generate import FOLDER, RULES, generate

    written = {path: path.read_text(encoding="utf-8") for path in (*FOLDER.glob("*.json"), RULES)}
    assert generate() == written


def test_all_are_there() -> None:
    assert NAMES == ["audit", "overview", "pipeline", "resources", "session", "sessions", "tools"]


def test_a_gap_in_the_samples_marks_no_deploy(tmp_path: Path) -> None:
    queries = dashboards.queries("overview", dashboards.load()["overview"])
    deploys = next(query for query in queries if query.where.endswith("annotation Deploys"))
    samples = {  # One a minute: a gap of ten minutes, a deploy after it, one in it, and a rollback.
        ("same", "1"): "1x60 _x10 1x60",
        ("after", "1"): "1x60 _x10 1x10 _x50",
        ("after", "2"): "_x81 1x50",
        ("meanwhile", "1"): "1x60 _x70",
        ("meanwhile", "2"): "_x71 1x60",
        ("rollback", "1"): "1x60 _x20 1x60",
        ("rollback", "2"): "_x60 1x19 _x60",
    }
    marks = {"1h12m": [("meanwhile", "2")], "1h22m": [("after", "2"), ("rollback", "1")], "1h40m": []}
    series = [
        {
            "series": f'otel_mcp_session_local{{service_name="{service}", service_version="{version}"}}',
            "values": values,
        }
        for (service, version), values in samples.items()
    ]
    cases = [
        {
            "expr": deploys.filled({"environment": ".*", "service": ".*"}),
            "eval_time": at,
            "exp_samples": [
                {"labels": f'{{service_name="{service}", service_version="{version}"}}', "value": 1}
                for service, version in marked
            ],
        }
        for at, marked in marks.items()
    ]
    rules = tmp_path / "deploys.test.yaml"
    rules.write_text(yaml.safe_dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": cases}]}))
    assert_promtool_takes(rules, "test", "rules")
