"""Alert rules: tested, explained, and asking for what somebody emits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.boards import agents, contract, external, query, slo
from tests.support.promtool import assert_promtool_takes

from . import dashboards, gate
from .lane.paths import ROOT
from .promql import ranges

RULES = ROOT / "grafana" / "alerts"
RUNBOOKS = ROOT / "docs" / "runbooks"
TESTS = sorted((Path(__file__).parent / "alerts").glob("*.test.yaml"))


def _rules() -> list[dict[str, Any]]:
    files = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RULES.glob("*.yaml")))
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in _rules() if "alert" in rule}


@pytest.mark.parametrize("rule", _rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_queries_emitted_metrics(rule: dict[str, Any]) -> None:
    assert list(gate.unknown_names("rule", rule["expr"])) == []


def test_every_series_that_is_declared_is_asked_for() -> None:
    """A name that nobody asks for can be misspelt for ever."""
    boards = dashboards.load().items()
    asked = [query.expr for name, board in boards for query in dashboards.queries(name, board)]
    everything = "\n".join([*asked, *(rule["expr"] for rule in _rules())])
    declared = [*external.SERIES, *(metric.series for metric in contract.METRICS)]
    assert [series for series in declared if series not in everything] == []


def test_a_misspelt_series_is_found() -> None:
    assert list(gate.unknown_names("rule", "max(otel_mcp_store_degraded_ratio) == 1"))


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_leads_to_its_runbook_and_its_dashboard(name: str) -> None:
    alert = ALERTS[name]
    annotations = alert["annotations"]
    assert annotations["runbook_url"] == f"docs/runbooks/{name}.md"
    runbook = (ROOT / annotations["runbook_url"]).read_text(encoding="utf-8")
    assert runbook.startswith(f"# {name}\n")
    for heading in ("## What it means", "## What to look at", "## What to do"):
        assert heading in runbook
    dashboard = re.match(r"/d/otel-mcp-(\w+)", annotations["dashboard_url"])
    assert dashboard is not None
    assert dashboard[1] in dashboards.load()
    assert alert["labels"]["severity"] in {"critical", "warning", "info"}
    assert alert["for"]


def test_no_runbook_is_left_over() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"} == set(ALERTS)


def test_every_alert_is_tested_both_ways() -> None:
    tested: dict[str, set[bool]] = {}
    for path in TESTS:
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for case in test.get("alert_rule_test") or ():
                tested.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert [name for name in ALERTS if tested.get(name) != {True, False}] == []


def test_objective_is_the_same_in_dashboards_and_alerts() -> None:
    for name, burn in (("MCPErrorBudgetBurnFast", slo.PAGE_BURN), ("MCPErrorBudgetBurnSlow", slo.TICKET_BURN)):
        assert ALERTS[name]["expr"].count(f"> {burn:g} * {slo.BUDGET:.2g}\n") == 2
    assert f") > {slo.TOOL_FAILING:g}\n" in ALERTS["MCPToolErrorRateHigh"]["expr"]
    assert f") > {slo.TOOL_SLOW:g}\n" in ALERTS["MCPToolLatencyHigh"]["expr"]
    for rule in _rules():
        if "record" in rule:
            # A day is how far back a gap may begin.
            assert ranges(rule["expr"]) - {"1d"} == {re.split(r"_rate|:increase", rule["record"])[-1]}
    assert f") > {slo.WRONG_CALLS:g}\n" in ALERTS["MCPWrongCallsHigh"]["expr"]
    assert f") > {slo.STRUGGLING:g}\n" in ALERTS["MCPSessionsStruggling"]["expr"]
    assert f'{query.OUTCOME}=~"{"|".join(query.STRUGGLED)}"' in ALERTS["MCPSessionsStruggling"]["expr"]
    recorded = {rule["record"] for rule in _rules() if "tool_calls" in rule.get("record", "")}
    assert recorded == {name(window) for name in (slo.error_ratio, slo.valid_calls) for window in slo.WINDOWS}


def test_whose_fault_it_is_is_the_same_in_dashboards_and_alerts() -> None:
    known = (query.SERVER_FAILED, query.INVALID, query.CALLER_WRONG)
    for rule in _rules():
        assert set(re.findall(rf"{query.FAILURE}[!=~]+\"[^\"]*\"", rule["expr"])) <= set(known)


def test_calls_that_are_wrong_count_as_no_error() -> None:
    """`isError` is one error type, whosever fault it is; only the kind of the failure says whose."""
    boards = dashboards.load().items()
    asked = [each.expr for name, board in boards for each in dashboards.queries(name, board)]
    by_type = [expr for expr in (*asked, *(rule["expr"] for rule in _rules())) if query.ERROR in expr]
    # A handshake calls no tool, and what clients are asked is none of their calls.
    others = agents.WORKED, "mcp_client_operation_duration"
    assert [expr for expr in by_type if not any(other in expr for other in others)] == []


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_promtool_agrees(path: Path) -> None:
    assert_promtool_takes(path, "test", "rules")
