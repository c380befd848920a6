"""A propagator gets what it can read, and has nothing to log."""

from __future__ import annotations

import logging

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context

from otel_mcp.wire.carrier import carried
from tests.hostile.strategies import texts
from tests.support.sides import log_lines

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"
BAGGAGE = [
    "a=b",
    "session.id=x, user = y ;prop;q=1",
    "a=%20%E4,b=",
    ",".join(f"k{number}=v" for number in range(180)),
]
STATES = ["a=b", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "0a@b=c d", " x=1 ,\ty=2\t"]


@pytest.mark.parametrize("value", BAGGAGE)
def test_baggage_that_w3c_allows_goes_through(value: str) -> None:
    context = propagate.extract(carried([("baggage", value)]), Context())

    plain = {"baggage": value.replace(" ", "")}
    assert baggage.get_all(context) == baggage.get_all(propagate.extract(plain, Context()))
    assert len(baggage.get_all(context)) == value.count(",") + 1


@pytest.mark.parametrize("value", STATES)
def test_tracestate_that_w3c_allows_goes_through(value: str) -> None:
    context = propagate.extract(carried([("traceparent", PARENT), ("tracestate", value)]), Context())

    assert len(trace.get_current_span(context).get_span_context().trace_state) == value.count(",") + 1


@settings(max_examples=300, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))  # pyright: ignore[reportArgumentType]
@given(st.one_of(texts, st.text(alphabet='a0=,; \t@%"\\x', max_size=30)), st.text(alphabet="a0=,; \t@_", max_size=30))
@example(",".join(f"k{number}=v" for number in range(181)), ",".join(f"k{number}=v" for number in range(33)))
@example("a=" + "b" * 4095, "a=" + "b" * 300)
@example("a=b," * 3000, "a" * 9000)
@example("a=b;", "a=b,a=c")
@example("a=b; c", "A=b")
def test_whatever_is_sent_the_propagators_log_nothing(said: str, state: str) -> None:
    logging.getLogger("opentelemetry").setLevel(logging.WARNING)

    with log_lines("opentelemetry") as lines:
        for parent in (PARENT, said):
            propagate.extract(carried([("traceparent", parent), ("tracestate", state), ("baggage", said)]), Context())

    assert lines == []
