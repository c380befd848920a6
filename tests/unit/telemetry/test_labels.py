"""Labels of calls that are kept at hand are those that would be found again."""

from __future__ import annotations

import random
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_mcp.model.call import Call, Exchange
from otel_mcp.model.delta import SessionFacts
from otel_mcp.model.session import Session
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.wire.jsonrpc import FINE, Outcome

_FIGURES = ("count", "sum", "value")


class _Forgetful(dict[Any, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        """Keep nothing."""


def any_call(source: random.Random) -> Call:
    exchange = Exchange("POST", "/mcp", {}, source.choice(("1.1", "2")), status=200)
    exchange.protocol_version = source.choice(("2026-07-28", "2025-11-25", "1999-01-01", None))
    request_id = source.choice((1, 1, 1, None))
    target = f"tool-{source.randrange(250)}" if source.random() < 0.9 else None
    call = Call(exchange, source.choice(("tools/call", "tools/call", "prompts/get")), request_id, target, {}, {})
    call.trusted_name, call.accepted = source.random() < 0.7, source.random() < 0.9
    call.outcome = source.choice((FINE, FINE, FINE, Outcome("tool_error"), None))
    call.tenant = source.choice((None, *(f"tenant-{number}" for number in range(60))))
    call.duration, call.result_bytes = source.random(), source.choice((None, 10, 200_000))
    if source.random() < 0.9:
        facts = SessionFacts(
            "s", 0.0, 60.0, client_name=source.choice((None, "claude-code", f"c{source.random():.1f}"))
        )
        call.session = Session(facts, 0.0)
    return call


def test_labels_at_hand_change_no_measurement() -> None:
    measured: list[Any] = []
    kept: list[int] = []
    for forgetful in (False, True):
        source, reader = random.Random(7), InMemoryMetricReader()
        metrics = Metrics(MeterProvider([reader], shutdown_on_exit=False))
        if forgetful:
            metrics.labels.usual = _Forgetful()
        for number in range(3000):
            metrics.record(any_call(source))
            if number % 50 == 0:
                metrics.close()
        metrics.close()
        kept.append(len(metrics.labels.usual))
        data = reader.get_metrics_data()
        points = [
            (metric.name, sorted((point.attributes or {}).items()), [getattr(point, name, 0) for name in _FIGURES])
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        ]
        measured.append(sorted(points, key=repr))
    assert measured[0] == measured[1]
    assert {name for name, *_ in measured[0]} >= {"mcp.server.operation.duration", "otel_mcp.client.requests"}
    assert kept[0] > 100
    assert kept[1] == 0
