"""What Grafana and Prometheus read at their start: no rule complains, and every rule can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.promtool import assert_promtool_takes

from . import provisioned

Rule = Callable[[str], Iterator[str]]
FILES: dict[Path, Rule] = {
    provisioned.DATASOURCES: provisioned.datasource_problems,
    provisioned.LOGS: provisioned.log_source_problems,
    provisioned.DASHBOARDS: provisioned.provider_problems,
    provisioned.PROMETHEUS: provisioned.prometheus_problems,
    provisioned.SCRAPED: provisioned.prometheus_problems,
}
MISTAKES: list[tuple[Path, str, str, str]] = [
    (provisioned.DATASOURCES, "type: jaeger", "type: tempo", "where dashboards ask"),
    (provisioned.DATASOURCES, "uid: otel-mcp-jaeger", "uid: jaeger", "jaeger is known as"),
    (provisioned.DATASOURCES, "${PROMETHEUS_URL}", "http://localhost:9090", "prometheus is at"),
    (provisioned.DATASOURCES, "access: proxy", "access: direct", "from the browser"),
    (provisioned.DATASOURCES, "isDefault: true", "isDefault: false", "the default"),
    (provisioned.DATASOURCES, "$${__value.raw}", "${__value.raw}", "Grafana reads $__value"),
    (provisioned.DATASOURCES, "timeInterval: 10s", "timeInterval: 15s", "servers export each 10 s"),
    (provisioned.DATASOURCES, "name: trace_id", "name: traceID", "exemplars are found by"),
    (provisioned.DATASOURCES, "/d/otel-mcp-session?var-trace_id", "/d/otel-mcp-session?var-trace", "exemplars lead to"),
    (provisioned.DATASOURCES, "datasourceUid: otel-mcp-prometheus", "datasourceUid: prometheus", "traces lead to"),
    (provisioned.DATASOURCES, "value: gen_ai_tool_name", "value: tool", "is not tool in Prometheus"),
    (provisioned.DATASOURCES, "key: gen_ai.tool.name", "key: gen_ai.tool", "is not gen_ai_tool_name"),
    (provisioned.DATASOURCES, "duration_seconds_count", "duration_count", "nobody emits"),
    (provisioned.DATASOURCES, "datasourceUid: otel-mcp-loki", "datasourceUid: loki", "traces lead to"),
    (provisioned.LOGS, "matcherType: label", "matcherType: regex", "records lead on by"),
    (provisioned.LOGS, "type: loki", "type: elasticsearch", "there is"),
    (provisioned.LOGS, "var-session_id", "var-session", "records lead to"),
    (provisioned.DASHBOARDS, "type: file", "type: git", "git into"),
    (provisioned.DASHBOARDS, "path: /etc/grafana/dashboards", "path: /var/lib/dashboards", "nothing is mounted"),
    (provisioned.DASHBOARDS, "allowUiUpdates: false", "allowUiUpdates: true", "changed in the browser"),
    (provisioned.PROMETHEUS, "    - service.version\n", "", "too many or missing"),
    (provisioned.PROMETHEUS, "WithSuffixes", "WithoutSuffixes", "series are named"),
    (provisioned.PROMETHEUS, "out_of_order_time_window: 30m", "out_of_order_time_window: 0s", "is refused"),
    (provisioned.PROMETHEUS, "alerts/*.yaml", "rules/*.yaml", "rules are read from"),
    (provisioned.PROMETHEUS, "evaluation_interval: 10s", "evaluation_interval: 1m", "rules are evaluated each 1m"),
    (provisioned.PROMETHEUS, "keep_identifying_resource_attributes: true", "", "whose it is"),
    (provisioned.SCRAPED, "honor_labels: true", "honor_labels: false", "are the Collector's"),
    (provisioned.SCRAPED, ":9464", ":9463", "are offered"),
    (provisioned.SCRAPED, "scrape_interval: 10s", "scrape_interval: 1m", "scraped each 1m"),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_keeps_every_rule(path: Path) -> None:
    assert list(FILES[path](path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(("path", "old", "new", "complaint"), MISTAKES, ids=lambda part: getattr(part, "name", part))
def test_a_mistake_is_found(path: Path, old: str, new: str, complaint: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    assert any(complaint in problem for problem in FILES[path](text.replace(old, new)))


@pytest.mark.parametrize("path", [provisioned.PROMETHEUS, provisioned.SCRAPED], ids=lambda path: path.name)
def test_prometheus_itself_takes_it(path: Path) -> None:
    assert_promtool_takes(path, "check", "config")
