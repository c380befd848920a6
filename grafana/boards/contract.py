"""Every metric that `otel_mcp` emits, as Prometheus sees it.

The names are the package's own constants, so a renamed metric breaks the dashboards' build and
not the dashboards. Kinds, units and attributes are checked against a running server by the lane
in `tests/stack`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

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
"""What `grafana/prometheus.yaml` promotes from the resource to every series."""

COMMON_LABELS: Final = RESOURCE_LABELS | {"job", "instance", "otel_metric_overflow"}


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
        """How often a histogram was recorded."""
        return f"{self.series}_count"

    @property
    def sum(self) -> str:
        """The sum of what a histogram recorded."""
        return f"{self.series}_sum"

    @property
    def labels(self) -> frozenset[str]:
        """The labels that its series may carry."""
        return COMMON_LABELS | {label(attribute) for attribute in self.attributes}

    def all_series(self) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield each of its series with the labels it may carry."""
        if self.kind == "histogram":
            yield self.bucket, self.labels | {"le"}
            yield self.count, self.labels
            yield self.sum, self.labels
        else:
            yield self.series, self.labels


OPERATION_DURATION: Final = Metric(
    names.METRIC_OPERATION_DURATION,
    "s",
    "histogram",
    (
        names.MCP_METHOD_NAME,
        names.GEN_AI_TOOL_NAME,
        names.GEN_AI_PROMPT_NAME,
        names.GEN_AI_OPERATION_NAME,
        names.ERROR_TYPE,
        names.RPC_RESPONSE_STATUS_CODE,
        names.MCP_PROTOCOL_VERSION,
        names.NETWORK_PROTOCOL_VERSION,
    ),
)
SESSION_DURATION: Final = Metric(
    names.METRIC_SESSION_DURATION,
    "s",
    "histogram",
    (
        names.MCP_PROTOCOL_VERSION,
        names.SESSION_END_REASON,
        names.SESSION_SOURCE,
    ),
)
SESSION_ACTIVE: Final = Metric(names.METRIC_SESSION_ACTIVE, "{session}", "gauge")
SESSION_LOCAL: Final = Metric(names.METRIC_SESSION_LOCAL, "{session}", "gauge")
SESSION_STARTED: Final = Metric(
    names.METRIC_SESSION_STARTED,
    "{session}",
    "counter",
    (names.SESSION_SOURCE, names.MCP_PROTOCOL_VERSION, names.TENANT),
)
SESSION_RESUMED: Final = Metric(names.METRIC_SESSION_RESUMED, "{session}", "counter")
SESSION_ENDED: Final = Metric(
    names.METRIC_SESSION_ENDED,
    "{session}",
    "counter",
    (names.SESSION_END_REASON, names.SESSION_OUTCOME, names.CLIENT_NAME, names.TENANT),
)
SESSION_INTERRUPTED: Final = Metric(
    names.METRIC_SESSION_INTERRUPTED,
    "{session}",
    "counter",
    (names.SESSION_INTERRUPTED_CAUSE, names.CLIENT_NAME),
)
SESSION_RETURNED: Final = Metric(
    names.METRIC_SESSION_RETURNED,
    "{session}",
    "counter",
    (names.SESSION_RETURNED_WITHIN, names.CLIENT_NAME),
)
SESSION_FINDINGS: Final = Metric(
    names.METRIC_SESSION_FINDINGS,
    "{finding}",
    "counter",
    (names.SESSION_FINDING, names.CLIENT_NAME),
)
SESSION_REJECTED: Final = Metric(names.METRIC_SESSION_REJECTED, "{session}", "counter", (names.REJECT_REASON,))
SESSION_TOOL_CALLS: Final = Metric(names.METRIC_SESSION_TOOL_CALLS, "{call}", "histogram", (names.SESSION_SOURCE,))
SESSION_CONTEXT_SIZE: Final = Metric(names.METRIC_SESSION_CONTEXT_SIZE, "By", "histogram", (names.CLIENT_NAME,))
TOOL_RESULT_SIZE: Final = Metric(
    names.METRIC_TOOL_RESULT_SIZE, "By", "histogram", (names.GEN_AI_TOOL_NAME, names.TENANT)
)
TOOL_RESULT_OVERSIZED: Final = Metric(
    names.METRIC_TOOL_RESULT_OVERSIZED, "{call}", "counter", (names.GEN_AI_TOOL_NAME, names.CLIENT_NAME)
)
TOOL_CALLS: Final = Metric(names.METRIC_TOOL_CALLS, "{call}", "counter", (names.GEN_AI_TOOL_NAME,))
DEFINITION_SIZE: Final = Metric(names.METRIC_TOOL_DEFINITION_SIZE, "By", "gauge", (names.GEN_AI_TOOL_NAME,))
CATALOGUE_SIZE: Final = Metric(names.METRIC_CATALOGUE_SIZE, "By", "histogram", (names.CLIENT_NAME,))
CATALOGUE_TOOLS: Final = Metric(names.METRIC_CATALOGUE_TOOLS, "{tool}", "gauge")
CLIENT_REQUESTS: Final = Metric(
    names.METRIC_CLIENT_REQUESTS,
    "{request}",
    "counter",
    (names.CLIENT_NAME, names.MCP_METHOD_NAME, names.MCP_PROTOCOL_VERSION, names.TENANT),
)
CALL_FAILURES: Final = Metric(
    names.METRIC_CALL_FAILURES,
    "{call}",
    "counter",
    (names.GEN_AI_TOOL_NAME, names.FAILURE, names.CLIENT_NAME),
)
CALL_CORRECTED: Final = Metric(
    names.METRIC_CALL_CORRECTED,
    "{call}",
    "counter",
    (names.GEN_AI_TOOL_NAME, names.FAILURE, names.CLIENT_NAME),
)
REQUESTS_REFUSED: Final = Metric(
    names.METRIC_REQUESTS_REFUSED,
    "{request}",
    "counter",
    (names.HTTP_RESPONSE_STATUS_CODE, names.CLIENT_NAME),
)
REQUESTS_ACTIVE: Final = Metric(
    names.METRIC_REQUESTS_ACTIVE, "{request}", "gauge", (names.MCP_METHOD_NAME, names.GEN_AI_TOOL_NAME)
)
CLIENT_DURATION: Final = Metric(
    names.METRIC_CLIENT_DURATION,
    "s",
    "histogram",
    (names.MCP_METHOD_NAME, names.MCP_PROTOCOL_VERSION, names.ERROR_TYPE, names.RPC_RESPONSE_STATUS_CODE),
)
CALL_INPUT_WAIT: Final = Metric(names.METRIC_CALL_INPUT_WAIT, "s", "histogram", (names.GEN_AI_TOOL_NAME,))
CALL_INPUT_ABANDONED: Final = Metric(names.METRIC_CALL_INPUT_ABANDONED, "{call}", "counter", (names.GEN_AI_TOOL_NAME,))
CALL_OLDEST: Final = Metric(names.METRIC_CALL_OLDEST, "s", "gauge", (names.GEN_AI_TOOL_NAME,))
_OF_TASKS: Final = (names.GEN_AI_TOOL_NAME, names.TASK_STATUS)
TASK_STARTED: Final = Metric(names.METRIC_TASK_STARTED, "{task}", "counter", (names.GEN_AI_TOOL_NAME,))
TASK_DURATION: Final = Metric(names.METRIC_TASK_DURATION, "s", "histogram", _OF_TASKS)
TASK_ACTIVE: Final = Metric(names.METRIC_TASK_ACTIVE, "{task}", "gauge", _OF_TASKS)
TASK_OLDEST: Final = Metric(names.METRIC_TASK_OLDEST, "s", "gauge", (names.GEN_AI_TOOL_NAME,))
TASK_UNFETCHED: Final = Metric(names.METRIC_TASK_UNFETCHED, "{task}", "counter", _OF_TASKS)
STREAM_ACTIVE: Final = Metric(names.METRIC_STREAM_ACTIVE, "{stream}", "gauge", (names.STREAM_KIND,))
STREAM_DURATION: Final = Metric(names.METRIC_STREAM_DURATION, "s", "histogram", (names.STREAM_KIND, names.CLIENT_NAME))
TRANSPORT_SESSIONS: Final = Metric(names.METRIC_TRANSPORT_SESSIONS, "{session}", "gauge")
HEADERS_CONTRADICTED: Final = Metric(
    names.METRIC_HEADERS_CONTRADICTED,
    "{request}",
    "counter",
    (names.HEADER,),
)
STORE_DURATION: Final = Metric(
    names.METRIC_STORE_DURATION,
    "s",
    "histogram",
    (names.STORE_OPERATION, names.STORE_OUTCOME),
)
STORE_PENDING: Final = Metric(names.METRIC_STORE_PENDING, "{call}", "gauge")
STORE_DROPPED: Final = Metric(names.METRIC_STORE_DROPPED, "{call}", "counter", (names.REJECT_REASON,))
STORE_DEGRADED: Final = Metric(names.METRIC_STORE_DEGRADED, "{process}", "gauge")
CALLERS_ACTIVE: Final = Metric(names.METRIC_CALLERS_ACTIVE, "{caller}", "gauge")
AUDIT_DROPPED: Final = Metric(names.METRIC_AUDIT_DROPPED, "{record}", "counter", (names.REJECT_REASON,))
OBSERVER_DROPPED: Final = Metric(names.METRIC_OBSERVER_DROPPED, "{call}", "counter", (names.OBSERVER,))
ERRORS: Final = Metric(names.METRIC_ERRORS, "{error}", "counter", (names.COMPONENT,))

METRICS: Final = tuple(value for value in globals().values() if isinstance(value, Metric))
