"""PromQL expressions that dashboards share."""

from __future__ import annotations

from typing import Final

from otel_mcp import semconv as names

from . import slo
from .contract import CALL_FAILURES, OPERATION_DURATION, Metric
from .names import label

RATE: Final = "$__rate_interval"
"""Not a fixed window, which would skip most data in a graph of a week."""
RANGE: Final = "$__range"
"""The selected time range, for totals."""

SERVICE: Final = label("service.name")
ENVIRONMENT: Final = label("deployment.environment.name")
INSTANCE: Final = label("service.instance.id")
TOOL: Final = label(names.GEN_AI_TOOL_NAME)
METHOD: Final = label(names.MCP_METHOD_NAME)
PROMPT: Final = label(names.GEN_AI_PROMPT_NAME)
ERROR: Final = label(names.ERROR_TYPE)
"""For tool calls, `FAILURE` shows whose fault an error is."""
CODE: Final = label(names.RPC_RESPONSE_STATUS_CODE)
FAILURE: Final = label(names.FAILURE)
STATUS: Final = label(names.HTTP_RESPONSE_STATUS_CODE)
CLIENT: Final = label(names.CLIENT_NAME)
TENANT: Final = label(names.TENANT)
VERSION: Final = label("service.version")
PROTOCOL: Final = label(names.MCP_PROTOCOL_VERSION)
SESSION: Final = label(names.SESSION_ID)
"""On logs only."""
SOURCE: Final = label(names.SESSION_SOURCE)
END_REASON: Final = label(names.SESSION_END_REASON)
REASON: Final = label(names.REJECT_REASON)
KIND: Final = label(names.STREAM_KIND)
OUTCOME: Final = label(names.SESSION_OUTCOME)
FINDING: Final = label(names.SESSION_FINDING)
CAUSE: Final = label(names.SESSION_INTERRUPTED_CAUSE)
WITHIN: Final = label(names.SESSION_RETURNED_WITHIN)

HEADS: Final = {
    SERVICE: "service", VERSION: "release", TOOL: "tool", METHOD: "method", PROMPT: "prompt", FAILURE: "failure",
    STATUS: "status", CLIENT: "client", TENANT: "tenant", PROTOCOL: "revision",
}  # fmt: skip
"""Heads of columns of tables, by label."""

PROBE: Final = "probe"
"""The outcome of sessions of registries and monitors."""
OUTCOMES: Final = ("gave_up", "looped", "retry_storm", "ping_pong", "corrected", "worked", "no_call", PROBE)
"""Outcomes of sessions, the worst first."""
STRUGGLED: Final = ("looped", "retry_storm", "ping_pong", "gave_up")
"""Outcomes of sessions whose client went in circles or gave up."""
HERE: Final = f'{ENVIRONMENT}=~"$environment", {SERVICE}=~"$service"'
"""Matchers for the dashboard's variables."""
SERVER_FAILED: Final = f'{FAILURE}=~"{"|".join(slo.SERVER_FAILED)}"'
INVALID: Final = f'{FAILURE}!~"{"|".join(slo.SERVER_FAILED)}"'
CALLER_WRONG: Final = f'{FAILURE}=~"{"|".join(slo.CALLER_WRONG)}"'


def select(series: str, *matchers: str) -> str:
    """Select a series by the dashboard's variables and further matchers."""
    return f"{series}{{{', '.join((HERE, *matchers))}}}"


def rate(series: str, *matchers: str, by: str = "", window: str = RATE) -> str:
    """Return the rate per second, summed."""
    return f"sum{grouping(by)}(rate({select(series, *matchers)}[{window}]))"


def increase(series: str, *matchers: str, by: str = "", window: str = RANGE) -> str:
    """Return the increase of a counter, summed."""
    return f"sum{grouping(by)}(increase({select(series, *matchers)}[{window}]))"


def quantile(q: float, metric: Metric, *matchers: str, by: str = "", window: str = RATE) -> str:
    """Return a quantile of a histogram."""
    buckets = ", ".join(filter(None, ("le", by)))
    rates = rate(metric.bucket, *matchers, by=buckets, window=window)
    return f"histogram_quantile({q:g}, {rates})"


def heat(metric: Metric, *matchers: str) -> str:
    """Return the buckets of a histogram, for a heatmap."""
    return increase(metric.bucket, *matchers, by="le", window=RATE)


def shared(metric: Metric, then: str = "") -> str:
    """Return a value that all replicas report alike, for each service; `then` is an offset."""
    return f"max by ({SERVICE}, {ENVIRONMENT}) ({select(metric.series)}{then})"


def share(part: str, whole: str) -> str:
    """Return part / whole, or 0 without a part, so that "healthy" does not look like "no data"."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def calls(*matchers: str, by: str = "", window: str = RATE) -> str:
    """Return the rate of tool calls."""
    return rate(OPERATION_DURATION.count, f'{METHOD}="tools/call"', *matchers, by=by, window=window)


def failures(*matchers: str, by: str = "", window: str = RATE) -> str:
    """Return the rate of tool calls that failed, by the caller's fault or the server's."""
    return rate(CALL_FAILURES.series, *matchers, by=by, window=window)


def failing(*matchers: str, by: str = "", window: str = RATE) -> str:
    """Return the share of valid tool calls that failed by the server's fault."""
    every = calls(*matchers, by=by, window=window)
    invalid = failures(INVALID, *matchers, by=by, window=window)
    failed = failures(SERVER_FAILED, *matchers, by=by, window=window)
    # For a new series, two rates of the same calls differ a little.
    return f"clamp_max({share(failed, f'({every} - ({invalid} or 0 * {every}))')}, 1)"


def wrong(*matchers: str, by: str = "", window: str = RATE) -> str:
    """Return the share of wrong tool calls."""
    return share(failures(CALLER_WRONG, *matchers, by=by, window=window), calls(*matchers, by=by, window=window))


def named(expr: str, label: str) -> str:
    """Set the label to `no name` on series that lack it, since a line needs a name."""
    return f'label_replace({expr}, "{label}", "no name", "{label}", "")'


def legend(*labels: str) -> str:
    """Return the name of a line: the values of its labels."""
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def grouping(by: str) -> str:
    """Return the `by` clause, if there is one."""
    return f" by ({by}) " if by else ""
