"""Build the parts of this package in a process, connect them, and shut them down."""

from __future__ import annotations

import asyncio
import atexit
import os
import time
from functools import partial
from typing import Final

from opentelemetry import metrics as otel_metrics
from opentelemetry import trace
from opentelemetry._logs import LoggerProvider, get_logger_provider
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import SpanContext, TracerProvider
from opentelemetry.util.http import ExcludeList, parse_excluded_urls

from otel_mcp import loops
from otel_mcp.agent import observer as agent
from otel_mcp.exchange.dispatch import Dispatcher
from otel_mcp.exchange.handler import ExchangeHandler
from otel_mcp.exchange.inflight import InFlight
from otel_mcp.exchange.outgoing import Outgoing
from otel_mcp.exchange.replies import Replies
from otel_mcp.exchange.request import Requests
from otel_mcp.exchange.response import Exchanges, Responses
from otel_mcp.exchange.rounds import Rounds
from otel_mcp.exchange.session_ids import SessionIds
from otel_mcp.guard import guarded
from otel_mcp.identity.principal import on_record, tenant_reader
from otel_mcp.identity.resolver import Resolver
from otel_mcp.model.delta import EndedSession, OpenCall, SessionDelta, WriteResult
from otel_mcp.model.state import SessionState
from otel_mcp.model.verdict import Finding
from otel_mcp.observers import Observers
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings
from otel_mcp.telemetry.audit import Audit
from otel_mcp.telemetry.content import capturer
from otel_mcp.telemetry.events import SessionReporter
from otel_mcp.telemetry.exporters import flushed
from otel_mcp.telemetry.http_span import HTTPSpans
from otel_mcp.telemetry.instruments import Readings
from otel_mcp.telemetry.logs import SessionLogProcessor
from otel_mcp.telemetry.logs import install as install_for_logs
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.telemetry.processor import SessionSpanProcessor, install
from otel_mcp.telemetry.recorder import Recorder
from otel_mcp.telemetry.spans import Spans
from otel_mcp.types import Scope
from otel_mcp.wire import headers as wire_headers

_WARM_UP_SECONDS: Final = 1.0
"""Time limit of waiting for a slow store at start."""
_WARM_UP_PAUSE: Final = 0.1
_FLUSH_SECONDS: Final = 3.0
"""Time limit at shutdown, of the store and then of the exporters."""
_LAST_EXPORT_SECONDS: Final = 1.0
"""Time limit of the metric exporter after that, to send the count of lost audit records."""


class Runtime:
    """All parts of one process; see `current.build`."""

    def __init__(
        self,
        settings: Settings,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
    ) -> None:
        self.settings = settings
        self._tracer_provider = tracer_provider
        self._meter_provider = meter_provider
        self._logger_provider = logger_provider
        self.excluded = _excluded(settings)
        self.is_ready = False
        self._processor: SessionSpanProcessor | None = None
        self.log_processor: SessionLogProcessor | None = None
        self.spans = Spans(tracer_provider)
        self.http_spans = HTTPSpans(settings, tracer_provider)
        self.metrics = Metrics(meter_provider, settings.tenant_names)
        events = _SessionEvents(self, tracer_provider, logger_provider)
        self.sessions = Sessions(settings, events)
        self.resolver = Resolver(settings, self.sessions, self.metrics.sessions.rejected)
        hashes = self.resolver.hashes
        self.metrics.catalogues.keyed = lambda content: hashes.digest("catalogue", content.hex(), size=8)
        self.metrics.catalogues.wake = self.sessions.list_catalogues
        self.metrics.tasks.hashed = lambda name: hashes.digest("task", name, size=8) if hashes.is_agreed else None
        self.metrics.tasks.wake = self.sessions.follow_tasks
        self.observers = Observers(settings, self.metrics.observer_dropped, **agent.make(settings, self.sessions))
        self._audit: Audit | None = None
        if settings.audit == "events":
            who = partial(on_record, hashes=hashes, way=settings.audit_caller)
            providers = logger_provider, tracer_provider
            self._audit = Audit(providers, hashes, who, settings.service_name, self.metrics)
        self.recorder = Recorder(
            settings, self.metrics, self.spans, hashes, self.observers, self.sessions.submit, self._audit
        )
        rounds = Rounds(settings, hashes, self.sessions, self.resolver.reconciler.later, self.metrics)
        outgoing = Outgoing(self.metrics, self.spans)
        inflight = InFlight(settings, self.resolver, self.recorder, rounds, outgoing)
        session_ids = SessionIds(settings, self.resolver, self.recorder, inflight, self.sessions)
        requests = Requests(settings, self.resolver, inflight)
        self.dispatcher = Dispatcher(
            requests,
            inflight,
            self.resolver,
            self.spans,
            self.http_spans,
            self.metrics,
            reads_results=settings.store_content,
        )
        self.exchanges = Exchanges(
            self.resolver,
            self.recorder,
            self.http_spans,
            inflight,
            session_ids,
            requests,
            Replies(settings, self.metrics, self.resolver, requests, inflight),
            Responses(settings, self.resolver, requests, inflight, session_ids),
            self.dispatcher,
            capturer(settings),
            tenant_reader(settings.tenant),
            outgoing.waiting,
            self.resolver.conversations,
            hides_ids=settings.session_id == "hashed",
        )
        self.handler: Final = partial(ExchangeHandler, self.exchanges)
        self.metrics.watch(self._read)
        atexit.register(self._at_exit)

    def _read(self) -> Readings:
        """Return the values of observable metrics; record finished calls first, so that an export misses none."""
        self._drain()
        self.exchanges.inflight.outgoing.expire()
        if self._audit is not None:
            self._audit.look()
        sessions, catalogues, tasks = self.sessions, self.metrics.catalogues, self.metrics.tasks
        return Readings(
            sessions.active,
            sessions.callers,
            sessions.local,
            sessions.pending,
            sessions.degraded,
            self.metrics.census,
            self.exchanges.requests.contradicted,
            catalogues.count(),
            catalogues.sizes(),
            {**dict.fromkeys(list(catalogues.tools.known), 0), **self.metrics.calls},
            tasks.active(),
            tasks.oldest(),
        )

    def _drain(self) -> None:
        self.recorder.drain()
        self.metrics.listings.finish()

    async def warm_up(self) -> None:
        """Connect to the store, learn the shared key and register metrics, before the first request.

        Otherwise replicas might begin with keys of their own and not recognise each
        other's clients. Does not wait for a store that is away.
        """
        self.metrics.register()
        self.sessions.ensure_running()
        await self.resolver.prepare()
        await loops.at_home(self._agree_on_key)

    async def _agree_on_key(self) -> None:
        deadline = time.monotonic() + _WARM_UP_SECONDS
        while not self.sessions.shared_key.is_agreed and time.monotonic() < deadline:
            await self.sessions.hash_key()
            if self.sessions.degraded:
                await asyncio.sleep(_WARM_UP_PAUSE)

    def get_ready(self) -> None:
        """Install the processors at the first request: before, there may be no providers, and the process may fork."""
        if self._processor is None:
            self._processor = install(self._tracer_provider)
        if self.log_processor is None:
            self.add_to_logs()
        self.metrics.register()
        self.is_ready = self._processor is not None

    def add_to_logs(self) -> None:
        """Put sessions on log records, if there is a logger provider."""
        self.log_processor = install_for_logs(self._logger_provider)

    def is_excluded(self, scope: Scope, headers: wire_headers.HeaderMap) -> bool:
        """Return whether the user has excluded this URL."""
        host = headers.get(b"host", b"").decode("latin-1")
        url = f"{scope.get('scheme', 'http')}://{host}{scope['path']}"
        return self.excluded is not None and self.excluded.url_disabled(url)

    async def shut_down(self) -> None:
        """Write everything pending and flush the exporters, within seconds. The runtime stays usable."""
        await loops.at_home(self._end)
        if loops.elsewhere() is not None:
            loops.stop()

    async def _end(self) -> None:
        self.exchanges.close()
        self._drain()
        await self.observers.aclose(1.0)
        await self.sessions.aclose(_FLUSH_SECONDS)
        self.recorder.drain()
        # Servers that end by re-raising the signal never run `atexit`, where the SDK would flush.
        with guarded("flush"):
            await asyncio.to_thread(self._flush)

    async def server_ended(self) -> None:
        """Shut down if no lifespan did, because the app or the server has none."""
        if self.sessions.is_running:
            await self.shut_down()

    def _flush(self) -> None:
        meters = self._meter_provider or otel_metrics.get_meter_provider()
        logs = self._logger_provider or get_logger_provider()
        done = flushed(_FLUSH_SECONDS, self._tracer_provider or trace.get_tracer_provider(), meters, logs)
        if self._audit is not None:
            if logs not in done:
                self._audit.give_up()
            flushed(_LAST_EXPORT_SECONDS, meters)  # Again, for the count of audit records that were just lost.

    def _at_exit(self) -> None:
        with guarded("exit"):
            self.exchanges.close()
        with guarded("exit"):
            self._drain()
        with guarded("exit"):
            self.sessions.flush_at_exit()

    def disable(self) -> None:
        """Stop observing, after ``uninstrument()``."""
        if self._processor is not None:
            self._processor.enabled = False
        if self.log_processor is not None:
            self.log_processor.is_on = False
        atexit.unregister(self._at_exit)
        self._at_exit()
        self.metrics.watch(None)  # The census is no longer kept.


class _SessionEvents(SessionReporter):
    """Passes the store's events to telemetry, and to the identities and observers of this process."""

    def __init__(
        self, runtime: Runtime, tracer_provider: TracerProvider | None, logger_provider: LoggerProvider | None
    ) -> None:
        span = runtime.settings.session_span
        super().__init__(runtime.metrics, tracer_provider, logger_provider, session_span=span)
        self._runtime = runtime

    def written(self, delta: SessionDelta, result: WriteResult) -> SessionDelta | None:
        super().written(delta, result)
        if result.created and self._runtime.log_processor is None:
            self._runtime.add_to_logs()
        return self._runtime.resolver.reconciler.apply(delta, result)

    def found(self, finding: Finding, state: SessionState) -> None:
        super().found(finding, state)
        self._runtime.observers.found(finding.name, state)

    def ended(self, session: EndedSession) -> None:
        super().ended(session)
        self._runtime.resolver.per_call.ended(session.facts)

    def calls_of(self, session_id: str) -> list[SpanContext]:
        return self._runtime.resolver.registry.calls_of(session_id)

    def in_flight(self) -> list[OpenCall]:
        return self._runtime.metrics.census.hanging(self._runtime.spans.instance())

    def hash_key(self, key: bytes) -> None:
        self._runtime.resolver.hashes.learn(key)

    def closing(self) -> None:
        self._runtime.resolver.reconciler.later.close()
        self._runtime.recorder.drain()


def _excluded(settings: Settings) -> ExcludeList | None:
    urls = settings.excluded_urls or os.environ.get("OTEL_PYTHON_EXCLUDED_URLS")
    with guarded("excluded URLs"):
        return parse_excluded_urls(urls) if urls else None
    return None
