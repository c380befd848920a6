"""The object of a process that holds everything together.

The request path only fills records and appends finished calls to a queue; the
recorder turns them into telemetry later. This module has the events of one
exchange, in the order in which they happen.
"""

from __future__ import annotations

import asyncio
import atexit
from collections import Counter
from collections.abc import Mapping
from time import perf_counter
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import metrics as otel_metrics
from opentelemetry import trace
from opentelemetry._logs import LoggerProvider, get_logger_provider
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from opentelemetry.util.http import ExcludeList, get_excluded_urls, parse_excluded_urls

from otel_mcp.answer import Answer, tool_names
from otel_mcp.events import SessionReporter
from otel_mcp.guard import guarded
from otel_mcp.identity.address import networks
from otel_mcp.identity.candidate import Rules
from otel_mcp.identity.hosts import HOST_KEYS, HostKey
from otel_mcp.identity.keys import OURS, Keys
from otel_mcp.identity.resolver import Resolver
from otel_mcp.identity.tracker import Tracker
from otel_mcp.metrics import Gauges, Metrics, known_method
from otel_mcp.middleware import ASGIApp, Message, Scope
from otel_mcp.observers.queue import Observers
from otel_mcp.processor import SessionSpanProcessor, install
from otel_mcp.recording import Recorder
from otel_mcp.request import SCOPE_KEY, Call, Exchange
from otel_mcp.responses import ResponseHeaders, with_headers
from otel_mcp.seams.http_span import make_http_app
from otel_mcp.sessions.delta import SessionDelta, SessionFacts
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings
from otel_mcp.spans import Spans
from otel_mcp.wire import headers as wire_headers
from otel_mcp.wire.jsonrpc import Outcome, is_mcp, negotiated_version, parse_messages

MAX_BODY: Final = 1024 * 1024
"""Bytes of a request body that are read; a larger one is told by its headers or the dispatch seam."""
_FLUSH_SECONDS: Final = 3.0
"""Longest that shutting down waits for the store, and for the exporters."""
_VERSION_META: Final = "io.modelcontextprotocol/protocolVersion"


class Runtime:
    """Everything of one process. Made once, at the first MCP request."""

    def __init__(
        self,
        settings: Settings,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
    ) -> None:
        self.settings = settings
        self._providers = (tracer_provider, meter_provider, logger_provider)
        self._tracer_provider = tracer_provider
        self._excluded = _excluded(settings)
        self._active: Counter[str] = Counter()
        self._processor: SessionSpanProcessor | None = None
        self._http_app: ASGIApp | None = None
        self.spans = Spans(tracer_provider)
        self.metrics = Metrics(
            meter_provider,
            Gauges(
                active=lambda: self.sessions.active,
                local=lambda: self.sessions.local,
                pending=lambda: self.sessions.pending,
                degraded=lambda: self.sessions.degraded,
                requests=lambda: self._active,
                collect=lambda: self.recorder.drain(),
            ),
        )
        reporter = SessionReporter(self.metrics, tracer_provider, logger_provider, session_span=settings.session_span)
        self.sessions = Sessions(settings, reporter)
        keys = Keys(self.sessions.hash_key)
        tracker = Tracker(settings, self.sessions, keys, self.metrics.session_rejected)
        self.resolver = Resolver(_rules(settings), keys, tracker)
        self.observers = Observers(settings, self.metrics.observer_dropped)
        self.recorder = Recorder(settings, self.metrics, self.spans, keys, self.observers, self.sessions.submit)
        self._headers = ResponseHeaders(settings)
        atexit.register(self._at_exit)

    # The events of one exchange, in order.

    async def begin(self, scope: Scope, headers: wire_headers.HeaderMap, verdict: int) -> tuple[Exchange, Scope] | None:
        """Look at an HTTP request that may be MCP.

        Returns:
            The record and the scope for the app; ``None`` = not ours to watch.
        """
        if self._is_excluded(scope, headers):
            return None
        client = scope.get("client")
        exchange = Exchange(
            scope["method"],
            scope["path"],
            headers,
            scope.get("http_version", "1.1"),
            str(client[0]) if client else None,
            scope.get("user"),
            protocol_version=wire_headers.text(headers, wire_headers.PROTOCOL_VERSION, 32),
            wire_session_id=wire_headers.text(headers, wire_headers.SESSION_ID, 512),
            confirmed=verdict == wire_headers.YES,
            ambient=otel_context.get_current(),
        )
        if (session_id := exchange.wire_session_id) and session_id.startswith(OURS) and not exchange.modern:
            await self.resolver.keys.prepare()
            if self.resolver.keys.is_ours(session_id):
                exchange.owns_sessions = False
                scope = _without_session_id(scope)
        scope[SCOPE_KEY] = exchange
        self._warm_up()
        return exchange, scope

    def requested(self, exchange: Exchange, body: bytes, *, more: bool) -> None:
        """A piece of the request body has been handed to the app."""
        if exchange.body_size > MAX_BODY or exchange.parsed:
            return
        exchange.body_size += len(body)
        if exchange.body_size > MAX_BODY:
            exchange.body.clear()
            return
        if more or exchange.body:
            exchange.body.append(body)
        if more:
            return
        exchange.parsed = True
        if exchange.http_method == "POST":
            self._parse(exchange, b"".join(exchange.body) if exchange.body else body)
        exchange.body.clear()

    def _parse(self, exchange: Exchange, body: bytes) -> None:
        if not body:
            return
        try:
            messages = parse_messages(body)
        except ValueError:
            return  # Not JSON: the server will say so, and there is no message to speak of.
        if not exchange.confirmed:
            if not any(is_mcp(message) for message in messages):
                return
            exchange.confirmed = True
        for message in messages:
            call = exchange.add(message, message.meta)
            self._active[known_method(call.method)] += 1
            if exchange.protocol_version is None:
                said = (
                    call.params.get("protocolVersion") if call.method == "initialize" else call.meta.get(_VERSION_META)
                )
                exchange.protocol_version = said[:32] if isinstance(said, str) else None

    async def answering(self, exchange: Exchange, message: Message) -> Message:
        """The response starts: last chance for headers of ours. Returns the message to send."""
        if not exchange.confirmed or exchange.status is not None:
            return message
        present = {name.lower(): value for name, value in message.get("headers", ())}
        status = int(message["status"])
        exchange.answer = Answer(exchange, self.finish)
        exchange.answer.on_reply = self._replied
        exchange.answer.start(status, present)
        said = wire_headers.text(present, wire_headers.SESSION_ID, 512)
        if said is not None and said == exchange.wire_session_id:
            exchange.owns_sessions = True
        if 200 <= status < 300:
            for call in exchange.calls:
                await self._accepted(call, said)
            if exchange.session is None:
                exchange.session = self.resolver.known(exchange)
        return with_headers(message, self._headers.added(exchange, present))

    async def _accepted(self, call: Call, said: str | None) -> None:
        """The server answers a call with success; only ``initialize`` may bring an id."""
        exchange = call.exchange
        if call.method == "initialize" and not exchange.wire_session_id:
            if said is not None:
                exchange.server_session_id, exchange.owns_sessions, exchange.minted = said, True, None
                await self.resolver.opened(call, said)
            elif exchange.status == 200 and self._headers.may_mint(exchange):
                await self.mint(call)
        elif call.session is None and not call.dispatched:
            await self.resolver.resolve(call)

    async def mint(self, call: Call) -> None:
        """Open a session of ours for an ``initialize`` that the server keeps none for."""
        exchange = call.exchange
        if exchange.minted is None:
            await self.resolver.keys.prepare()
            exchange.minted = self.resolver.keys.mint()
            await self.resolver.opened(call, exchange.minted)

    def may_mint(self, exchange: Exchange) -> bool:
        return self._headers.may_mint(exchange)

    def answered(self, exchange: Exchange, body: bytes, *, more: bool) -> None:
        """A piece of the response body has been sent."""
        if not more:
            exchange.responded = True
        if exchange.answer is not None:
            exchange.answer.feed(body, more=more)

    def _replied(self, call: Call | None, reply: Mapping[str, Any]) -> None:
        if call is None:
            return
        if call.method == "tools/list":
            self.metrics.learn_tools(tool_names(reply))
        elif call.method == "initialize" and (version := negotiated_version(reply)) is not None:
            call.exchange.protocol_version = version
            if call.session is not None:
                call.session.facts.protocol_version = version
        if self.settings.store_content:
            call.result = reply.get("result")

    def finish(self, call: Call, outcome: Outcome | None, size: int | None) -> None:
        """A call has its outcome. The first one stands."""
        if call.finished:
            return
        call.finished = True
        call.duration = perf_counter() - call.started
        call.result_bytes = size
        call.outcome = _merged(outcome, call.told)
        self._active[known_method(call.method)] -= 1
        self.recorder.add(call)

    def end(self, exchange: Exchange) -> None:
        """The app has returned, or raised."""
        exchange.closed = True
        for call in exchange.calls:
            if not call.finished and not call.running:
                self.finish(call, _left_open(call), None)
        if exchange.http_method == "DELETE":
            self._deleted(exchange)

    def _deleted(self, exchange: Exchange) -> None:
        accepted = exchange.status is not None and 200 <= exchange.status < 300
        if not exchange.wire_session_id or not (accepted or exchange.owns_sessions is False):
            return
        session_id = self.resolver.storable(exchange.wire_session_id)
        session = self.resolver.tracker.get(session_id)
        facts = (
            session.facts
            if session is not None
            else SessionFacts(session_id, exchange.started_ns / 1e9, self.settings.session_ttl)
        )
        if session is not None:
            self.resolver.tracker.forget(session)
        # What came before the end is counted before it.
        self.recorder.drain()
        now = exchange.started_ns / 1e9
        self.sessions.submit(SessionDelta(facts, now, ended=(now, "client_delete")))

    # What runs once, or in the background.

    def _warm_up(self) -> None:
        if self._processor is None:
            self._processor = install(self._tracer_provider)
        self.metrics.register()
        self.sessions.ensure_running()

    def _is_excluded(self, scope: Scope, headers: wire_headers.HeaderMap) -> bool:
        if self._excluded is None:
            return False
        host = headers.get(b"host", b"").decode("latin-1")
        return self._excluded.url_disabled(f"{scope.get('scheme', 'http')}://{host}{scope['path']}")

    async def shut_down(self) -> None:
        """Write what is pending and let the exporters send it, within seconds. The runtime stays usable."""
        self.recorder.drain()
        await self.observers.aclose(1.0)
        await self.sessions.aclose(_FLUSH_SECONDS)
        self.recorder.drain()
        # Servers that end by re-raising the signal never run `atexit`, where the SDK would flush.
        await asyncio.wait_for(asyncio.to_thread(self._force_flush), _FLUSH_SECONDS + 1)

    def _force_flush(self) -> None:
        tracer, meter, logger = self._providers
        for provider in (
            tracer or trace.get_tracer_provider(),
            meter or otel_metrics.get_meter_provider(),
            logger or get_logger_provider(),
        ):
            flush = getattr(provider, "force_flush", None)
            if flush is not None:
                with guarded("flush"):
                    flush(int(_FLUSH_SECONDS * 1000))

    def _at_exit(self) -> None:
        with guarded("exit"):
            self.recorder.drain()
            self.sessions.flush_at_exit()

    def http_app(self) -> ASGIApp:
        """The app that opens an HTTP span around another; made when it is first needed."""
        if self._http_app is None:
            tracer, meter, _ = self._providers
            self._http_app = make_http_app(tracer_provider=tracer, meter_provider=meter)
        return self._http_app

    def disable(self) -> None:
        """After ``uninstrument()``: nothing is watched any more."""
        if self._processor is not None:
            self._processor.enabled = False
        atexit.unregister(self._at_exit)
        self._at_exit()


def _excluded(settings: Settings) -> ExcludeList | None:
    urls = parse_excluded_urls(settings.excluded_urls) if settings.excluded_urls else get_excluded_urls("MCP")
    return urls if getattr(urls, "_excluded_urls", None) else None


def _rules(settings: Settings) -> Rules:
    trusted = ()
    with guarded("trusted proxies"):
        trusted = networks(settings.trusted_proxies)
    return Rules(settings, (*(HostKey(key) for key in settings.conversation_keys), *HOST_KEYS), trusted)


def _without_session_id(scope: Scope) -> Scope:
    """The scope as the app would have got it had we not given the client an id."""
    kept = [(name, value) for name, value in scope["headers"] if name != wire_headers.SESSION_ID]
    return {**scope, "headers": kept}


def _merged(outcome: Outcome | None, told: Outcome | None) -> Outcome | None:
    """The wire's word, completed by what the handler's seam saw."""
    if told is None or outcome is None:
        return outcome or told
    if told.error_type == "cancelled":
        return Outcome("cancelled", outcome.status_code, told.exception_type)
    if outcome.unclassified:
        return told
    return Outcome(outcome.error_type, outcome.status_code, told.exception_type if outcome.error_type else None)


def _left_open(call: Call) -> Outcome | None:
    """How a call ended whose answer did not come by: what was not seen is not guessed."""
    exchange = call.exchange
    if call.told is not None:
        return call.told
    if exchange.status is not None and exchange.status >= 400:
        return Outcome(error_type=str(exchange.status))
    if call.id is None:
        return Outcome()
    if exchange.disconnected:
        return Outcome(error_type="cancelled" if exchange.modern else "disconnected")
    if exchange.status is None:
        return Outcome(error_type="500")
    return Outcome(unclassified=True)
