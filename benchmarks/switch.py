"""Turns the instrumentation on and off from one call to the next, within one process.

`native` must mean *never instrumented*. So each seam is patched once with a
function that calls either the original or the wrapper, whichever the variant
wants: classes are not touched again, and every variant pays the same 0.1 us.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import wraps
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from otel_mcp import current
from otel_mcp.instrumentor import MCPInstrumentor
from otel_mcp.integrations.patching import Patches
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry.http_span import HTTPSpans


class Mode(Enum):
    """What stands between the server and its callers."""

    NATIVE = "native"
    """The original functions."""
    INERT = "inert"
    """Ours, in a process where there is nothing to observe."""
    OBSERVED = "observed"


@dataclass(slots=True)
class _Seam:
    original: Callable[..., Any]
    wrapper: Callable[..., Any]
    active: Callable[..., Any]


class _Seams(Patches):
    """Replaces attributes as `Patches` does, by functions that can be switched."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[_Seam] = []

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> bool:
        if not super().replace(owner, name, make):
            return False
        wrapper = owner.__dict__[name]
        seam = _Seam(wrapper._otel_mcp_original, wrapper, wrapper)

        @wraps(wrapper)
        def switched(*args: Any, **kwargs: Any) -> Any:
            return seam.active(*args, **kwargs)

        setattr(owner, name, switched)
        self.all.append(seam)
        return True


class _SwitchedProcessor(SpanProcessor):
    """A span processor that can be left out."""

    def __init__(self, inner: SpanProcessor) -> None:
        self._inner = inner
        self.on = True

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self.on:
            self._inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        if self.on:
            self._inner.on_end(span)


class SwitchedProvider(TracerProvider):
    """A tracer provider whose later processors (ours) can be left out. The first one is the exporter's."""

    def __init__(self, exporting: SpanProcessor) -> None:
        super().__init__()
        self.switched: list[_SwitchedProcessor] = []
        super().add_span_processor(exporting)

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        self.switched.append(_SwitchedProcessor(span_processor))
        super().add_span_processor(self.switched[-1])


class Switch:
    """Instruments the process once, then decides call by call whether that shows."""

    def __init__(self, provider: SwitchedProvider, **settings: Any) -> None:
        self._provider = provider
        self._seams = _Seams()
        MCPInstrumentor._patches = self._seams  # pyright: ignore[reportPrivateUsage]
        MCPInstrumentor().instrument(skip_dep_check=True, http_span="off", **settings)
        made = current.build()
        assert made is not None
        self.runtime: Runtime = made
        self._off = made.http_spans
        self._on = HTTPSpans(made.settings.model_copy(update={"http_span": "on"}), provider)

    def select(self, mode: Mode, *, http_span: bool = False) -> None:
        """Make the next call one of `mode`."""
        for seam in self._seams.all:
            seam.active = seam.original if mode is Mode.NATIVE else seam.wrapper
        for processor in self._provider.switched:
            processor.on = mode is Mode.OBSERVED
        current.runtime = self.runtime if mode is Mode.OBSERVED else None
        current.build = lambda: current.runtime
        self.runtime.http_spans = self.runtime.exchanges.http_spans = self._on if http_span else self._off
