"""Series of others that dashboards and alerts use: of the Collector, Valkey and Prometheus."""

from __future__ import annotations

from typing import Final

from .contract import COMMON_LABELS
from .slo import WINDOWS, error_ratio, valid_calls

_SPAN: Final = COMMON_LABELS | {"span_name", "span_kind", "status_code", "collector_instance_id"}
_EDGE: Final = COMMON_LABELS | {"client", "server", "connection_type", "failed"}
_RECEIVER: Final = COMMON_LABELS | {"receiver", "transport"}
_EXPORTER: Final = COMMON_LABELS | {"exporter", "data_type"}

SPAN_DURATION: Final = "traces_span_metrics_duration_seconds_bucket"
SPAN_TIME: Final = "traces_span_metrics_duration_seconds_sum"
EDGE_CALLS: Final = "traces_service_graph_request_total"
EDGE_FAILED: Final = "traces_service_graph_request_failed_total"
EDGE_DURATION: Final = "traces_service_graph_request_client_seconds_bucket"

SIGNALS: Final = ("spans", "metric_points", "log_records")


def accepted(signal: str) -> str:
    """Return the series of what a Collector's receivers accepted."""
    return f"otelcol_receiver_accepted_{signal}_total"


def refused(signal: str) -> str:
    """Return the series of what a Collector's receivers refused, mostly for lack of memory."""
    return f"otelcol_receiver_refused_{signal}_total"


def sent(signal: str) -> str:
    """Return the series of what a Collector's exporters delivered."""
    return f"otelcol_exporter_sent_{signal}_total"


def send_failed(signal: str) -> str:
    """Return the series of what a Collector's exporters failed to deliver."""
    return f"otelcol_exporter_send_failed_{signal}_total"


def enqueue_failed(signal: str) -> str:
    """Return the series of what a Collector's exporters dropped because their queue was full."""
    return f"otelcol_exporter_enqueue_failed_{signal}_total"


QUEUE_SIZE: Final = "otelcol_exporter_queue_size"
QUEUE_CAPACITY: Final = "otelcol_exporter_queue_capacity"
COLLECTOR_MEMORY: Final = "otelcol_process_memory_rss_bytes"

REDIS_GAUGES: Final = (
    "redis_clients_connected",
    "redis_memory_used_bytes",
    "redis_commands_processed_total",
    "redis_keys_evicted_total",
    "redis_keys_expired_total",
    "redis_connections_rejected_total",
)

SERIES: Final[dict[str, frozenset[str]]] = {
    "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
    SPAN_DURATION: _SPAN | {"le"},
    SPAN_TIME: _SPAN,
    EDGE_CALLS: _EDGE,
    EDGE_FAILED: _EDGE,
    EDGE_DURATION: _EDGE | {"le"},
    QUEUE_SIZE: _EXPORTER,
    QUEUE_CAPACITY: _EXPORTER,
    COLLECTOR_MEMORY: COMMON_LABELS,
    **{make(signal): _RECEIVER for make in (accepted, refused) for signal in SIGNALS},
    **{make(signal): _EXPORTER for make in (sent, send_failed, enqueue_failed) for signal in SIGNALS},
    **dict.fromkeys(REDIS_GAUGES, COMMON_LABELS),
    **{name(window): COMMON_LABELS for name in (error_ratio, valid_calls) for window in WINDOWS},
}
