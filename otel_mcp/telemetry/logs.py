"""Put the session and the tool on log records that are made inside a call.

The OpenTelemetry context of a record decides, as for spans (`processor.session_beneath`), whichever library logs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import _logs, trace
from opentelemetry import context as otel_context
from opentelemetry._logs import LoggerProvider
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LogRecordProcessor

from otel_mcp import semconv
from otel_mcp.guard import report
from otel_mcp.model.call import Call
from otel_mcp.telemetry.processor import is_beneath, session_beneath
from otel_mcp.telemetry.spans import CALL, session_attributes

if TYPE_CHECKING:
    from opentelemetry.sdk._logs import ReadWriteLogRecord  # Has another name before OpenTelemetry 1.39.


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
    """Return the dictionary of attributes of the SDK, if so many clean ones have room there; else the attributes.

    To put three of them through `BoundedAttributes`, which checks each again, costs more than all the rest.
    """
    most, held = getattr(attributes, "maxlen", 0), getattr(attributes, "_dict", None)
    fits = held is not None and attributes.max_value_len is None and (most is None or len(held) + more <= most)
    return held if fits else attributes


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
        """Return False: a record that no other processor wants need not be made."""
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
