"""Registries, monitors and tests, by the names that they give themselves."""

from __future__ import annotations

import pytest

from otel_mcp.identity.probes import BOTS, TESTS, synthetic_type


@pytest.mark.parametrize(
    ("name", "user_agent", "kind"),
    [
        ("glama", None, "bot"),
        ("MCPScoringEngine", "node", "bot"),
        ("glimind-probe", None, "bot"),
        ("tiza-search-prober", None, "bot"),
        (" YellowMCP-Health ", None, "bot"),
        ("mcp", "mcpbeat/0.1 (+https://mcpbeat.com/bot/)", "bot"),
        (None, "Mozilla/5.0 (compatible; SmitheryBot/1.0; +https://smithery.ai)", "bot"),
        ("conformance-test-client", "node", "test"),
        ("mcp", "Blackbox Exporter/0.27.0", "test"),
        (None, "Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)", "test"),
        (None, "GoogleStackdriverMonitoring-UptimeChecks(https://cloud.google.com/monitoring)", "test"),
        (None, "Datadog/Synthetics", "test"),
        ("Acme-Check", None, "test"),
        (None, "acme-check/2 python-httpx/0.28", "test"),
        ("mcp", "python-httpx/0.28.1", None),
        ("mcp-inspector", "node", None),
        ("claude-code", "claude-code/2.1.266 (cli)", None),
        ("glama-chat", None, None),
        ("probe", None, None),
        ("probe-designer", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36", None),
        ("my-health", "datadog-agent/7", None),
        ("", "", None),
        (None, None, None),
    ],
)
def test_synthetic_client_is_known_by_its_whole_name_only(
    name: str | None, user_agent: str | None, kind: str | None
) -> None:
    assert synthetic_type(name, user_agent, frozenset({"acme-check"})) == kind


def test_names_are_in_lower_case_and_of_one_kind() -> None:
    assert not BOTS & TESTS
    assert all(each == each.lower().strip() for each in BOTS | TESTS)
