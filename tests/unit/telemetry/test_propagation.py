"""Trace context comes by the configured propagator, of any kind, which gets what it can read; faults stay inside."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import CarrierT, Getter, TextMapPropagator, default_getter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_mcp import MCPMiddleware
from otel_mcp.telemetry.propagation import carried
from tests.hostile.strategies import texts
from tests.support.answers import Server
from tests.support.asgi import post
from tests.support.messages import MODERN_HEADERS, modern
from tests.support.providers import Telemetry, described
from tests.support.sides import log_lines
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

TRACE, PARENT = "ab" * 16, "cd" * 8
MALFORMED = ["a;b;c=", "=", "a=b," * 300, 'key="quoted\\', "ключ=1", "a=b\x00c", "x" * 9000, "a=%zz;;", ",,,"]


class Single(TextMapPropagator):
    """Reads one header, as those of Zipkin and Jaeger do: trace, span and sampling joined by dashes."""

    @property
    def fields(self) -> set[str]:
        return {"B3"}

    def extract(
        self, carrier: CarrierT, context: Context | None = None, getter: Getter[CarrierT] = default_getter
    ) -> Context:
        found = getter.get(carrier, "B3")
        if not found:
            return context if context is not None else Context()
        trace_id, span_id, sampled = found[0].split("-")
        flags = trace.TraceFlags(int(sampled))
        remote = trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=flags)
        return trace.set_span_in_context(trace.NonRecordingSpan(remote), context)

    def inject(self, carrier: Any, context: Context | None = None, setter: Any = None) -> None:
        return None


class Unhashable(Single):
    """As a dataclass that compares by its fields is."""

    def __eq__(self, other: object) -> bool:
        raise TypeError("not comparable")

    __hash__ = None  # type: ignore[assignment]


class Raising(Single):
    def extract(self, *args: Any, **kwargs: Any) -> Context:
        raise RuntimeError("secret")


class WithoutFields(Single):
    @property
    def fields(self) -> set[str]:  # type: ignore[override]
        raise RuntimeError("secret")


class Silent(Single):
    """Returns nothing, as a composite of none does where it gets no context."""

    def extract(self, *args: Any, **kwargs: Any) -> Context:
        return None  # type: ignore[return-value]


@pytest.fixture
def propagator() -> Iterator[Callable[[TextMapPropagator], None]]:
    """Sets the propagator of the process, as ``OTEL_PROPAGATORS`` does; the usual one comes back."""
    before = propagate.get_global_textmap()
    yield propagate.set_global_textmap
    propagate.set_global_textmap(before)


@pytest.mark.parametrize("http_span", ["auto", "off"])
@pytest.mark.parametrize("where", ["header", "meta"])
@pytest.mark.parametrize("kind", [Single, Unhashable])
async def test_any_propagator_names_the_parent(
    make_runtime: MakeRuntime, telemetry: Telemetry, propagator: Any, http_span: str, where: str, kind: type[Single]
) -> None:
    propagator(CompositePropagator([kind()]))
    sent = f"{TRACE}-{PARENT}-1"
    meta = {"B3": sent} if where == "meta" else {}
    headers = [*MODERN_HEADERS, ("b3", sent)] if where == "header" else MODERN_HEADERS

    reply = await post(MCPMiddleware(Server(), make_runtime(http_span=http_span)), modern(**meta), headers)

    spans = {described(span)["scope"]: span for span in telemetry.spans()}
    outermost = spans["otel_mcp.http"] if http_span == "auto" and where == "header" else spans["otel_mcp"]
    assert described(outermost)["parent"] == PARENT
    assert (spans["otel_mcp"].attributes or {})["session.id"] == reply.session_id


@pytest.mark.parametrize("http_span", ["auto", "off"])
@pytest.mark.parametrize("kind", [Raising, WithoutFields, Silent, None])
async def test_a_propagator_that_gives_nothing_costs_only_the_parent(
    make_runtime: MakeRuntime,
    telemetry: Telemetry,
    propagator: Any,
    failures: Counter[str],
    http_span: str,
    kind: type[Single] | None,
) -> None:
    propagator(CompositePropagator([]) if kind is None else kind())
    sent = f"{TRACE}-{PARENT}-1"

    reply = await post(
        MCPMiddleware(Server(), make_runtime(http_span=http_span)), modern(B3=sent), [*MODERN_HEADERS, ("b3", sent)]
    )

    span = next(span for span in telemetry.spans() if described(span)["scope"] == "otel_mcp")
    assert reply.status == 200
    assert (span.attributes or {})["session.id"] == reply.session_id
    assert set(failures) == ({"propagator"} if kind in (Raising, WithoutFields) else set())


@pytest.mark.parametrize("name", ["baggage", "tracestate"])
@pytest.mark.parametrize("http_span", ["auto", "off"])
async def test_what_cannot_be_read_writes_no_line(
    make_runtime: MakeRuntime,
    propagator: Any,
    caplog: pytest.LogCaptureFixture,
    http_span: str,
    name: str,
) -> None:
    propagator(CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()]))
    app = MCPMiddleware(Server(), make_runtime(http_span=http_span))
    caplog.set_level(logging.DEBUG)

    for text in MALFORMED:
        header = text.encode("utf-8").decode("latin-1")
        traced = [*MODERN_HEADERS, ("traceparent", f"00-{TRACE}-{PARENT}-01"), (name, header)]
        assert (await post(app, modern(**{name: text}), traced)).status == 200

    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


TRACEPARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"
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
    context = propagate.extract(carried([("traceparent", TRACEPARENT), ("tracestate", value)]), Context())

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
        for parent in (TRACEPARENT, said):
            propagate.extract(carried([("traceparent", parent), ("tracestate", state), ("baggage", said)]), Context())

    assert lines == []
