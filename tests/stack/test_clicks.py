"""Three clicks lead from an alert to the session; `tests.stack.lane` follows them with real data."""

from __future__ import annotations

import json
import re

import pytest

from . import clicks, dashboards
from .promql import ask
from .test_alerts import ALERTS, RUNBOOKS

LINKS = {name: alert["annotations"]["dashboard_url"] for name, alert in ALERTS.items()}


@pytest.mark.parametrize("name", LINKS)
def test_an_alert_opens_a_dashboard_that_leads_on_to_traces(name: str) -> None:
    labels = clicks.labels_of(LINKS[name])
    board, chosen = clicks.opened(clicks.filled(LINKS[name], dict.fromkeys(labels, "a b&c=d")))
    assert labels <= ask(ALERTS[name]["expr"]).grouped_by | {"service_name"}
    assert set(chosen) <= set(dashboards.variables(dashboards.load()[board]))
    assert set(chosen.values()) <= {"a b&c=d"}
    assert board == "pipeline" or list(clicks.ways_on(board))


@pytest.mark.parametrize("spoilt", ["/d/otel-mcp-none", "/d/otel-mcp-tools?var-tool={{ $labels.gen_ai_tool_name }}"])
def test_a_link_that_leads_nowhere_is_found(spoilt: str) -> None:
    with pytest.raises(ValueError, match="otel-mcp"):
        clicks.opened(clicks.filled(spoilt, {}))


def test_the_explorer_leads_from_a_trace_to_its_session() -> None:
    attributes = [
        {"key": "mcp.session.id", "type": "string", "value": "of the transport"},
        {"key": "session.id", "type": "string", "value": "om1.a-b_c"},
        {"key": "session.previous_id", "type": "string", "value": "another"},
    ]
    for separators in ((",", ":"), None):
        found = clicks.sessions_in(json.dumps(attributes, separators=separators))
        assert found == ({"om1.a-b_c"} if separators else set())  # As JavaScript writes it.
    assert clicks.sessions_in('[{"key":"session.id","value":"om1.x","type":"string"}]') == {"om1.x"}
    assert clicks.sessions_in("[]") == set()

    (link,) = re.findall(r"/d/otel-mcp-session\?[^\"]*", json.dumps(clicks.session_panel()))
    known = dashboards.variables(dashboards.load()[clicks.EXPLORER])
    assert {"session_id", "service"} <= set(re.findall(r"var-(\w+)=", link)) <= set(known)


def test_a_runbook_names_panels_that_are_there() -> None:
    shown = json.dumps(dashboards.load()).lower()
    for path in RUNBOOKS.glob("*.md"):
        named = re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", path.read_text(encoding="utf-8"))
        assert [name for name in named if f'"{name.lower()}"' not in shown] == [], path.name
