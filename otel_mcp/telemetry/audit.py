"""One log record for each finished ``tools/call``: who called what and when, and how it went.

There are as many as ``mcp.server.operation.duration`` counts, sampled or not. Records are numbered, and those that an
exporter loses are counted, so no loss is unnoticed.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

from opentelemetry import _logs, trace
from opentelemetry._logs import Logger, LoggerProvider
from opentelemetry.trace import TracerProvider

from otel_mcp import semconv
from otel_mcp.guard import guarded, report
from otel_mcp.hashing import KeyedHashes
from otel_mcp.model.call import Call, Exchange, client_of
from otel_mcp.model.session import Session
from otel_mcp.telemetry.exporters import Watch, watch_exports
from otel_mcp.telemetry.logs import MakeRecord, quick, record_of
from otel_mcp.telemetry.metrics import Metrics
from otel_mcp.telemetry.spans import session_attributes
from otel_mcp.version import __version__
from otel_mcp.wire import headers as wire_headers

logger = logging.getLogger("otel_mcp")

REASONS: Final = ("error", "export", "full", "shutdown", "unconfigured")
"""Why a record is lost: we failed; its exporter failed; the exporter did not get it, mostly because a queue was full;
the process ended first; nobody exports logs."""
_UNAUTHORIZED, _FORBIDDEN = 401, 403
_MOST_REFUSED: Final = 50
"""Maximum records of refused requests per second: anybody can cause them, and they share the queue with calls."""
_VERSION: Final = re.compile(r"[vV]?[0-9][0-9A-Za-z.+_-]{0,31}\Z")
"""Other values may be arbitrary text of a client."""


@dataclass(slots=True)
class _Count:
    """Counts the records of this process, of all its runtimes."""

    numbered: int = 0
    emitted: int = 0
    """Number of the last record that the provider got."""


COUNT: Final = _Count()


class Audit:
    """Makes the records; only one thread at a time may use it."""

    def __init__(
        self,
        providers: tuple[LoggerProvider | None, TracerProvider | None],
        keys: KeyedHashes,
        caller: Callable[[Exchange, str], dict[str, str]],
        service: str,
        metrics: Metrics,
    ) -> None:
        """Initialize without records.

        Args:
            providers: the one that makes them, and another that may know the service's name.
            keys: for hashes, which differ from service to service.
            caller: returns the attribute that names the caller of a service, if any.
            service: the service's name if no provider has one.
            metrics: counts lost records, and knows which names are not invented by clients.
        """
        self._provider, self._tracers = providers
        self._keys = keys
        self._caller = caller
        self._service = service
        self._person = b""
        """Keeps the hashes of arguments of one service apart from those of others, and from those in documents."""
        self._watches: Sequence[Watch] = ()
        self._metrics = metrics
        self._logger: Logger | None = None
        self._make: MakeRecord | None = None
        """The fast way to make a record."""
        self._warned = False
        self._refusals = 0, 0
        """The current second, and the requests that have been refused in it."""
        metrics.audits = REASONS

    def record(self, call: Call) -> None:
        """Make the record of a finished call."""
        try:
            emitter = self._logger or self._slow_find()
            if emitter is None:
                self._metrics.audit_dropped(1, "unconfigured")
                return
            attributes = self._attributes(call)
            ended_ns = call.exchange.started_ns + int(call.duration * 1e9)
            make = self._make or record_of
            made = make(semconv.EVENT_TOOL_CALL, ended_ns, attributes, call.span_context)
        except Exception as failure:
            report("audit", failure)
            self._metrics.audit_dropped(1, "error")
            return
        number = COUNT.numbered = attributes[semconv.AUDIT_NUMBER] = COUNT.numbered + 1
        try:
            emitter.emit(made)
        except Exception as failure:
            report("audit", failure)  # Its number is used: if no exporter gets it, that is counted.
        COUNT.emitted = number

    def refused(self, exchange: Exchange, status: int, session: Session | None) -> None:
        """Make the record of a request that authentication refused before its body was read. From any thread.

        It names nobody unless somebody is authenticated: anybody can send the token of somebody else.
        """
        with guarded("audit"):
            if status not in (_UNAUTHORIZED, _FORBIDDEN):
                return
            second, count = int(time.monotonic()), self._refusals[1] + 1
            self._refusals = second, count if second == self._refusals[0] else 1
            if self._refusals[1] > _MOST_REFUSED:
                return
            headers, names, tools = exchange.headers, self._metrics.clients, self._metrics.catalogues.tools
            agent, tool = wire_headers.text(headers, b"user-agent"), wire_headers.text(headers, wire_headers.NAME)
            provider = self._provider if self._provider is not None else _logs.get_logger_provider()
            service = self._service if self._logger is not None else self._name(provider)
            known: dict[str, Any] = {
                semconv.HTTP_RESPONSE_STATUS_CODE: status,
                semconv.CLIENT_NAME: names.bounded(agent.partition("/")[0], proven=False) if agent else None,
                **(self._caller(exchange, service) if status == _FORBIDDEN and self._keys.ready else {}),
            }
            if tool is not None and headers.get(wire_headers.METHOD) == b"tools/call":
                known[semconv.GEN_AI_TOOL_NAME] = tools.bounded(tool, proven=False)
            if session is not None:
                known |= {semconv.SESSION_ID: session.facts.session_id, semconv.SESSION_SOURCE: session.source}
            attributes = {attribute: value for attribute, value in known.items() if value is not None}
            context = exchange.http_span.get_span_context() if exchange.http_span is not None else None
            made = record_of(semconv.EVENT_REQUEST_REFUSED, time.time_ns(), attributes, context)
            (self._logger or self._make_logger(provider)).emit(made)

    def _attributes(self, call: Call) -> dict[str, Any]:
        outcome, (name, version) = call.outcome, client_of(call)
        known: dict[str, Any] = {}
        if (tool := call.target) is not None:
            if not (call.trusted_name or call.tool_entered):  # The server may not have such a tool: it may be any text.
                tool = self._metrics.catalogues.tools.bounded(tool, proven=False)
            known[semconv.GEN_AI_TOOL_NAME] = tool
        if name is not None:
            known[semconv.CLIENT_NAME] = client = self._metrics.clients.bounded(name, proven=False)
            if version and client == name and _is_version(version):
                known[semconv.CLIENT_VERSION] = version
        known[semconv.CALL_DURATION] = call.duration
        if call.result_bytes is not None:
            known[semconv.CALL_RESULT_SIZE] = call.result_bytes
        if (digest := self._digest(call)) is not None:
            known[semconv.CALL_ARGUMENTS_HASH] = digest
        if outcome is not None and outcome.error_type is not None:
            known[semconv.ERROR_TYPE] = outcome.error_type
        if outcome is not None and outcome.status_code is not None:
            known[semconv.RPC_RESPONSE_STATUS_CODE] = outcome.status_code
        if call.failure is not None:
            known[semconv.FAILURE] = call.failure
        if call.round is not None and call.round.number:
            known[semconv.CALL_ROUND] = call.round.number
        if call.tenant is not None:
            known[semconv.TENANT] = call.tenant
        known.update(self._caller(call.exchange, self._service))
        known.update(session_attributes(call))
        return known

    def _digest(self, call: Call) -> str | None:
        arguments = call.arguments if call.arguments is not None else call.params.get("arguments")
        return self._keys.digest_json(arguments, self._person) if arguments and self._keys.ready else None

    def look(self) -> None:
        """Count records already lost, even if no exporter got a later one."""
        for watch in self._watches:
            with guarded("audit"):
                watch.look(COUNT.emitted)

    def give_up(self) -> None:
        """Count the records that are not exported when the process ends."""
        for watch in self._watches:
            with guarded("audit"):
                watch.give_up(COUNT.numbered)

    def _slow_find(self) -> Logger | None:
        """Return the logger, once there is a provider that exports."""
        provider = self._provider if self._provider is not None else _logs.get_logger_provider()
        watches = watch_exports(provider, _numbers, COUNT.numbered + 1, self._metrics.audit_dropped)
        if watches is not None:
            self._watches, self._service = watches, self._name(provider)
            self._person = sha256(self._service.encode("utf-8", "replace")).digest()[:16]
            self._logger = self._make_logger(provider)
            self._make = quick(self._logger)
        elif not self._warned:
            self._warned = True
            logger.warning(
                "otel_mcp: OTEL_PYTHON_MCP_AUDIT is on, but this process exports no logs (OTEL_LOGS_EXPORTER): "
                "audit records are counted as dropped"
            )
        return self._logger

    def _make_logger(self, provider: LoggerProvider) -> Logger:
        return _logs.get_logger(semconv.SCOPE, __version__, logger_provider=provider, schema_url=semconv.SCHEMA_URL)

    def _name(self, provider: LoggerProvider) -> str:
        """Return the service's name, which may be set in code; the SDK's default does not count."""
        for owner in (provider, self._tracers or trace.get_tracer_provider()):
            resource: Any = getattr(owner, "resource", None)
            name = str(resource.attributes.get("service.name") or "") if resource is not None else ""
            if name and not name.startswith("unknown_service"):
                return name
        return self._service


@lru_cache(maxsize=64)
def _is_version(text: str) -> bool:
    return _VERSION.match(text) is not None


def _after_fork() -> None:
    COUNT.numbered = COUNT.emitted = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _numbers(batch: Iterable[Any]) -> Iterator[int]:
    """Return the numbers of the audit records in a batch."""
    for exported in batch:
        if exported.log_record.event_name == semconv.EVENT_TOOL_CALL:
            attributes: dict[str, Any] = exported.log_record.attributes or {}
            if isinstance(number := attributes.get(semconv.AUDIT_NUMBER), int):
                yield number
