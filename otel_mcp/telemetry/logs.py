"""Adds session and tool to log records made inside a call, and creates the records of our own events.

The OpenTelemetry context of a record decides, as for spans (`processor.session_beneath`), whichever library logs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from threading import Lock
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, cast

from opentelemetry import _logs, trace
from opentelemetry import context as otel_context
from opentelemetry._logs import LoggerProvider, LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.sdk import _logs as sdk
from opentelemetry.sdk._logs import LogRecordProcessor
from opentelemetry.trace import SpanContext

from otel_mcp import semconv
from otel_mcp.guard import report
from otel_mcp.model.call import Call
from otel_mcp.telemetry.processor import is_beneath, session_beneath
from otel_mcp.telemetry.spans import CALL, NO_SPAN, session_attributes

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadWriteLogRecord  # Has another name before OpenTelemetry 1.39.

MakeRecord = Callable[[str, int, dict[str, Any], SpanContext | None], Any]
"""Makes what a logger takes: of the event's name, its Unix nanoseconds, attributes, which it keeps, and span."""
_MOST_ATTRIBUTES: Final = 32
"""Of a record of ours, at most: where fewer are allowed, the SDK decides which of them go."""


def described(context: Context | None) -> tuple[Mapping[str, str], str | None]:
    """Return the session's attributes, empty if it is unknown, and the tool, for a record made in `context`."""
    call = otel_context.get_value(CALL, context)
    parent = trace.get_current_span(context)
    if isinstance(call, Call) and (parent is call.span or call.span_context is None or is_beneath(parent, call)):
        return session_attributes(call), call.target if call.method == "tools/call" else None
    # The current span does not belong to the call, if there is one.
    carried: Mapping[str, Any] | None = getattr(parent, "attributes", None)
    session = session_beneath(parent, None, carried)
    return session, carried.get(semconv.GEN_AI_TOOL_NAME) if carried and session else None


def within(attributes: Any, more: int) -> Any:
    """Return the SDK's dictionary of attributes if all of them fit; otherwise the attributes.

    To put three of them through `BoundedAttributes`, which checks each again, costs more than all the rest.
    """
    most, held = getattr(attributes, "maxlen", 0), getattr(attributes, "_dict", None)
    fits = held is not None and attributes.max_value_len is None and (most is None or len(held) + more <= most)
    return held if fits else attributes


class _Record(LogRecord):
    """A record with cheap construction and copying: the SDK puts copies into its batches."""

    def __init__(self, fields: dict[str, Any]) -> None:
        object.__setattr__(self, "__dict__", fields)

    def __copy__(self) -> _Record:
        return _Record(self.__dict__.copy())


def record_of(event: str, time: int, attributes: dict[str, Any], span: SpanContext | None) -> LogRecord:
    """Make the record of an event. It has the ids of a span, but no context, which would cost as much as the rest."""
    made = LogRecord(
        timestamp=time, context=NO_SPAN, severity_number=SeverityNumber.INFO, event_name=event, attributes=attributes
    )
    if span is not None:
        made.trace_id, made.span_id, made.trace_flags = span.trace_id, span.span_id, span.trace_flags
    return made


def quick(emitter: Any) -> MakeRecord | None:
    """Return what makes the same of an event as `record_of` and the SDK's logger, which cleans attributes again.

    ``None`` where the SDK is not as expected, or attributes have limits that may concern ours, which are clean.
    """
    try:
        kind = cast(Any, sdk.ReadWriteLogRecord)
        like = cast(Any, record_of("", 0, {}, None))
        limits, scope = emitter._log_record_limits, emitter.instrumentation_scope
        sample = kind(like, resource=emitter.resource, instrumentation_scope=scope, limits=limits)
        inner = like.attributes
        # Copies, since the dictionaries of instances share their keys, which makes each copy of them slow.
        whole, fields, held = ({**instance.__dict__} for instance in (sample, like, inner))
        is_expected = (
            type(emitter) is sdk.Logger
            and whole.keys() == {"log_record", "resource", "instrumentation_scope", "limits"}
            and held.keys() == {"_dict", "maxlen", "dropped", "max_value_len", "_lock", "_immutable"}
            and inner.max_value_len is None
            and (inner.maxlen is None or inner.maxlen >= _MOST_ATTRIBUTES)
        )
    except Exception:  # Private parts may be anything.
        return None

    def make(event: str, time: int, attributes: dict[str, Any], span: SpanContext | None) -> Any:
        within: Any = object.__new__(inner.__class__)
        within.__dict__ = bounded = held.copy()
        bounded["_dict"], bounded["_lock"] = attributes, Lock()
        own = fields.copy()
        own["timestamp"], own["observed_timestamp"] = time, time_ns()
        own["event_name"], own["attributes"] = event, within
        if span is not None:
            own["trace_id"], own["span_id"], own["trace_flags"] = span.trace_id, span.span_id, span.trace_flags
        made = object.__new__(kind)
        made.__dict__ = outer = whole.copy()
        outer["log_record"], outer["resource"] = _Record(own), emitter.resource
        return made

    return make if is_expected else None


class SessionLogProcessor(LogRecordProcessor):
    """Adds ``session.id``, its source and ``gen_ai.tool.name`` to log records; never overwrites them."""

    def __init__(self) -> None:
        self.is_on = True

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        if not self.is_on:
            return
        try:
            record, scope = log_record.log_record, log_record.instrumentation_scope
            if scope is not None and scope.name == semconv.SCOPE:
                return  # Ours has its own session.
            session, tool = described(record.context)
            if not (session or tool):
                return  # Outside a call.
            attributes = within(record.attributes, 3)
            if semconv.SESSION_ID in session and semconv.SESSION_ID not in attributes:
                attributes.update(session)
            if tool and semconv.GEN_AI_TOOL_NAME not in attributes:
                attributes[semconv.GEN_AI_TOOL_NAME] = tool
        except Exception as failure:
            report("log processor", failure)

    def enabled(self, **_: Any) -> bool:
        """Return False: this processor alone does not need a record to be made."""
        return False

    def shutdown(self) -> None:
        self.is_on = False

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


def install(provider: LoggerProvider | None) -> SessionLogProcessor | None:
    """Add the processor to an SDK provider; ``None`` = there is no SDK provider yet.

    It must run before the exporters' processors, which pass on the record as it is at that time, so it is moved to
    the front: the SDK can only append.
    """
    target: Any = provider if provider is not None else _logs.get_logger_provider()
    add = getattr(target, "add_log_record_processor", None)
    if add is None:
        return None
    processor = SessionLogProcessor()
    add(processor)
    several: Any = getattr(target, "_multi_log_record_processor", None)
    lock = getattr(several, "_lock", None)
    if lock is not None and isinstance(getattr(several, "_log_record_processors", None), tuple):
        with lock:
            others = [other for other in several._log_record_processors if other is not processor]
            several._log_record_processors = (processor, *others)
    return processor


class SessionLogFilter(logging.Filter):
    """Adds ``session_id``, ``session_source`` and ``tool_name`` to records of `logging`, for your own format.

    Filters nothing. Outside a call the fields are empty strings, so that a format never fails.

    Example:
        >>> record = logging.makeLogRecord({"msg": "starting"})
        >>> SessionLogFilter().filter(record), record.__dict__["session_id"]
        (True, '')
    """

    def filter(self, record: logging.LogRecord) -> bool:
        session_id = source = tool = None
        try:
            session, tool = described(None)
            if session_id := session.get(semconv.SESSION_ID):
                source = session.get(semconv.SESSION_SOURCE)
        except Exception as failure:
            report("log filter", failure)
        add = vars(record).setdefault
        add("session_id", session_id or "")
        add("session_source", source or "")
        add("tool_name", tool or "")
        return True
