"""Every metric that `otel_mcp` emits, as Prometheus sees it: an attribute must be declared here to be on a panel.

Names are the package's own constants, units and kinds those of its instruments. The lane in `tests/stack` compares the
attributes with those of a running server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from docs.source import instruments
from otel_mcp import semconv as names

from .names import label, series

Kind = Literal["counter", "gauge", "histogram"]

RESOURCE_LABELS: Final = frozenset(
    label(attribute)
    for attribute in (
        "service.name",
        "service.namespace",
        "service.version",
        "service.instance.id",
        "deployment.environment.name",
        "k8s.cluster.name",
        "k8s.namespace.name",
        "k8s.pod.name",
    )
)
"""Labels that `grafana/prometheus.yaml` promotes from the resource to every series."""
COMMON_LABELS: Final = RESOURCE_LABELS | {"job", "instance", "otel_metric_overflow"}
_INSTRUMENTS: Final = {instrument.name: instrument for instrument in instruments()}
_KINDS: Final[dict[str, Kind]] = {
    "counter": "counter",
    "observable_counter": "counter",
    "histogram": "histogram",
    "observable_gauge": "gauge",
    "observable_up_down_counter": "gauge",
}


@dataclass(frozen=True)
class Metric:
    """One metric of the package."""

    name: str
    unit: str
    kind: Kind
    attributes: tuple[str, ...] = ()

    @property
    def series(self) -> str:
        """The series of a counter or gauge."""
        return series(self.name, self.unit, self.kind)

    @property
    def bucket(self) -> str:
        """The buckets of a histogram."""
        return f"{self.series}_bucket"

    @property
    def count(self) -> str:
        """The number of measurements of a histogram."""
        return f"{self.series}_count"

    @property
    def sum(self) -> str:
        """The sum of the measurements of a histogram."""
        return f"{self.series}_sum"

    @property
    def labels(self) -> frozenset[str]:
        """The labels that the series of the metric may carry."""
        return COMMON_LABELS | {label(attribute) for attribute in self.attributes}

    def all_series(self) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield each series of the metric, with the labels that it may carry."""
        if self.kind == "histogram":
            yield self.bucket, self.labels | {"le"}
            yield self.count, self.labels
            yield self.sum, self.labels
        else:
            yield self.series, self.labels


def _metric(name: str, *attributes: str) -> Metric:
    """Make a metric of the package's instrument of that name."""
    instrument = _INSTRUMENTS[name]
    return Metric(name, instrument.unit, _KINDS[instrument.kind], attributes)


OPERATION_DURATION: Final = _metric(
    names.METRIC_OPERATION_DURATION,
    names.MCP_METHOD_NAME,
    names.GEN_AI_TOOL_NAME,
    names.GEN_AI_PROMPT_NAME,
    names.GEN_AI_OPERATION_NAME,
    names.ERROR_TYPE,
    names.RPC_RESPONSE_STATUS_CODE,
    names.MCP_PROTOCOL_VERSION,
    names.NETWORK_PROTOCOL_VERSION,
)
SESSION_DURATION: Final = _metric(
    names.METRIC_SESSION_DURATION, names.MCP_PROTOCOL_VERSION, names.SESSION_END_REASON, names.SESSION_SOURCE
)
SESSION_ACTIVE: Final = _metric(names.METRIC_SESSION_ACTIVE)
SESSION_LOCAL: Final = _metric(names.METRIC_SESSION_LOCAL)
SESSION_STARTED: Final = _metric(
    names.METRIC_SESSION_STARTED, names.SESSION_SOURCE, names.MCP_PROTOCOL_VERSION, names.TENANT
)
SESSION_RESUMED: Final = _metric(names.METRIC_SESSION_RESUMED)
SESSION_ENDED: Final = _metric(
    names.METRIC_SESSION_ENDED, names.SESSION_END_REASON, names.SESSION_OUTCOME, names.CLIENT_NAME, names.TENANT
)
SESSION_INTERRUPTED: Final = _metric(
    names.METRIC_SESSION_INTERRUPTED, names.SESSION_INTERRUPTED_CAUSE, names.CLIENT_NAME
)
SESSION_RETURNED: Final = _metric(names.METRIC_SESSION_RETURNED, names.SESSION_RETURNED_WITHIN, names.CLIENT_NAME)
SESSION_FINDINGS: Final = _metric(names.METRIC_SESSION_FINDINGS, names.SESSION_FINDING, names.CLIENT_NAME)
SESSION_REJECTED: Final = _metric(names.METRIC_SESSION_REJECTED, names.REJECT_REASON)
SESSION_TOOL_CALLS: Final = _metric(names.METRIC_SESSION_TOOL_CALLS, names.SESSION_SOURCE)
SESSION_CONTEXT_SIZE: Final = _metric(names.METRIC_SESSION_CONTEXT_SIZE, names.CLIENT_NAME)
TOOL_RESULT_SIZE: Final = _metric(names.METRIC_TOOL_RESULT_SIZE, names.GEN_AI_TOOL_NAME, names.TENANT)
TOOL_RESULT_OVERSIZED: Final = _metric(names.METRIC_TOOL_RESULT_OVERSIZED, names.GEN_AI_TOOL_NAME, names.CLIENT_NAME)
TOOL_CALLS: Final = _metric(names.METRIC_TOOL_CALLS, names.GEN_AI_TOOL_NAME)
DEFINITION_SIZE: Final = _metric(names.METRIC_TOOL_DEFINITION_SIZE, names.GEN_AI_TOOL_NAME)
CATALOGUE_SIZE: Final = _metric(names.METRIC_CATALOGUE_SIZE, names.CLIENT_NAME)
CATALOGUE_TOOLS: Final = _metric(names.METRIC_CATALOGUE_TOOLS)
CLIENT_REQUESTS: Final = _metric(
    names.METRIC_CLIENT_REQUESTS, names.CLIENT_NAME, names.MCP_METHOD_NAME, names.MCP_PROTOCOL_VERSION, names.TENANT
)
CALL_FAILURES: Final = _metric(names.METRIC_CALL_FAILURES, names.GEN_AI_TOOL_NAME, names.FAILURE, names.CLIENT_NAME)
CALL_CORRECTED: Final = _metric(names.METRIC_CALL_CORRECTED, names.GEN_AI_TOOL_NAME, names.FAILURE, names.CLIENT_NAME)
REQUESTS_REFUSED: Final = _metric(names.METRIC_REQUESTS_REFUSED, names.HTTP_RESPONSE_STATUS_CODE, names.CLIENT_NAME)
REQUESTS_ACTIVE: Final = _metric(names.METRIC_REQUESTS_ACTIVE, names.MCP_METHOD_NAME, names.GEN_AI_TOOL_NAME)
CLIENT_DURATION: Final = _metric(
    names.METRIC_CLIENT_DURATION,
    names.MCP_METHOD_NAME,
    names.MCP_PROTOCOL_VERSION,
    names.ERROR_TYPE,
    names.RPC_RESPONSE_STATUS_CODE,
)
CALL_INPUT_WAIT: Final = _metric(names.METRIC_CALL_INPUT_WAIT, names.GEN_AI_TOOL_NAME)
CALL_INPUT_ABANDONED: Final = _metric(names.METRIC_CALL_INPUT_ABANDONED, names.GEN_AI_TOOL_NAME)
CALL_OLDEST: Final = _metric(names.METRIC_CALL_OLDEST, names.GEN_AI_TOOL_NAME)
_OF_TASKS: Final = (names.GEN_AI_TOOL_NAME, names.TASK_STATUS)
TASK_STARTED: Final = _metric(names.METRIC_TASK_STARTED, names.GEN_AI_TOOL_NAME)
TASK_DURATION: Final = _metric(names.METRIC_TASK_DURATION, *_OF_TASKS)
TASK_ACTIVE: Final = _metric(names.METRIC_TASK_ACTIVE, *_OF_TASKS)
TASK_OLDEST: Final = _metric(names.METRIC_TASK_OLDEST, names.GEN_AI_TOOL_NAME)
TASK_UNFETCHED: Final = _metric(names.METRIC_TASK_UNFETCHED, *_OF_TASKS)
STREAM_ACTIVE: Final = _metric(names.METRIC_STREAM_ACTIVE, names.STREAM_KIND)
STREAM_DURATION: Final = _metric(names.METRIC_STREAM_DURATION, names.STREAM_KIND, names.CLIENT_NAME)
TRANSPORT_SESSIONS: Final = _metric(names.METRIC_TRANSPORT_SESSIONS)
HEADERS_CONTRADICTED: Final = _metric(names.METRIC_HEADERS_CONTRADICTED, names.HEADER)
STORE_DURATION: Final = _metric(names.METRIC_STORE_DURATION, names.STORE_OPERATION, names.STORE_OUTCOME)
STORE_PENDING: Final = _metric(names.METRIC_STORE_PENDING)
STORE_DROPPED: Final = _metric(names.METRIC_STORE_DROPPED, names.REJECT_REASON)
STORE_DEGRADED: Final = _metric(names.METRIC_STORE_DEGRADED)
CALLERS_ACTIVE: Final = _metric(names.METRIC_CALLERS_ACTIVE)
AUDIT_DROPPED: Final = _metric(names.METRIC_AUDIT_DROPPED, names.REJECT_REASON)
OBSERVER_DROPPED: Final = _metric(names.METRIC_OBSERVER_DROPPED, names.OBSERVER)
ERRORS: Final = _metric(names.METRIC_ERRORS, names.COMPONENT)

METRICS: Final = tuple(value for value in globals().values() if isinstance(value, Metric))
