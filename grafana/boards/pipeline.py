"""Whether the dashboards can be trusted: the session store, the Collector, and the package itself."""

from __future__ import annotations

from otel_mcp import semconv as names

from . import contract as m
from . import external, panels, query
from .board import Board
from .names import label
from .targets import now, over_time

OPERATION = label(names.STORE_OPERATION)
OUTCOME = label(names.STORE_OUTCOME)
COMPONENT = label(names.COMPONENT)
OBSERVER = label(names.OBSERVER)
HEADER = label(names.HEADER)
LEGEND_EXPORTER = query.legend("exporter")


def board() -> Board:
    """Return the dashboard of the parts that all others depend on."""
    b = Board(
        "otel-mcp-pipeline",
        "MCP / Store and pipeline",
        "Whether the other dashboards can be trusted: the session store, the Collector, and the package itself.",
    )
    b.select("environment", "service").mark_deploys()
    _store(b.row("Session store, as servers see it"))
    _valkey(b.row("Valkey or Redis, as it sees itself"))
    _collector(b.row("Collector"))
    _package(b.row("The instrumentation itself"))
    return b


def _store(b: Board) -> None:
    b.lines(
        "Operations",
        "Operations of servers on the store. Any outcome but `ok`: the store is slow, full or away.",
        [
            over_time(
                query.rate(m.STORE_DURATION.count, by=f"{OPERATION}, {OUTCOME}"),
                query.legend(OPERATION, OUTCOME),
            )
        ],
        panels.OPERATIONS,
        stacked=True,
    )
    b.lines(
        "Latency, 95th percentile",
        "How long the store takes. Requests do not wait for it, but pending writes take memory: an alert fires above "
        "50 ms.",
        [over_time(query.quantile(0.95, m.STORE_DURATION, by=OPERATION), query.legend(OPERATION))],
        panels.SECONDS,
    )
    b.lines(
        "Degraded, pending and dropped",
        "Processes whose store does not answer; calls that wait to be written; calls per second that are lost. The "
        "first is the cause, the last the damage.",
        [
            over_time(f"sum({query.select(m.STORE_DEGRADED.series)})", "degraded processes", ref="A"),
            over_time(f"sum({query.select(m.STORE_PENDING.series)})", "pending calls", ref="B"),
            over_time(query.rate(m.STORE_DROPPED.series), "dropped calls/s", ref="C"),
        ],
        panels.COUNT,
    )


def _valkey(b: Board) -> None:
    rate = "sum(rate({}[$__rate_interval]))"
    b.lines(
        "Commands",
        "Commands that the store runs. If they fall while traffic is steady, servers no longer use the store.",
        [over_time(rate.format("redis_commands_processed_total"), "commands")],
        panels.OPERATIONS,
        width=6,
    )
    b.lines(
        "Memory",
        "Memory of sessions. At its limit, the store rejects writes (noeviction) or loses sessions (any other policy).",
        [over_time("sum(redis_memory_used_bytes)", "used")],
        panels.BYTES,
        width=6,
    )
    b.lines(
        "Keys gone",
        "`expired` keys are normal. `evicted` keys are sessions lost for lack of memory, which fires an alert.",
        [
            over_time(rate.format("redis_keys_expired_total"), "expired", ref="A"),
            over_time(rate.format("redis_keys_evicted_total"), "evicted", ref="B"),
        ],
        panels.EVENTS,
        width=6,
    )
    b.lines(
        "Connections",
        "One or two per process. If they grow without end, clients do not close them.",
        [
            over_time("sum(redis_clients_connected)", "connected", ref="A"),
            over_time(rate.format("redis_connections_rejected_total"), "rejected/s", ref="B"),
        ],
        panels.COUNT,
        width=6,
    )


def _collector(b: Board) -> None:
    received = [
        over_time(_total(external.accepted(signal), "receiver"), f"{signal} {{{{receiver}}}}", ref=ref)
        for ref, signal in zip("ABC", external.SIGNALS, strict=True)
    ]
    b.lines("Received", "What arrives, by kind and receiver.", received, panels.EVENTS, width=6)
    sent = [
        over_time(_total(external.sent(signal), "exporter"), f"{signal} {LEGEND_EXPORTER}", ref=ref)
        for ref, signal in zip("ABC", external.SIGNALS, strict=True)
    ]
    b.lines(
        "Delivered",
        "What leaves, by kind and exporter. Fewer spans than received: sampling, or loss; see the next panel.",
        sent,
        panels.EVENTS,
        width=6,
    )
    refused = " + ".join(f"(sum(rate({external.refused(s)}[{query.RATE}])) or vector(0))" for s in external.SIGNALS)
    failed, full = (
        " + ".join(f"(sum(rate({make(s)}[{query.RATE}])) or vector(0))" for s in external.SIGNALS)
        for make in (external.send_failed, external.enqueue_failed)
    )
    b.lines(
        "Lost",
        "`refused`: for lack of memory; the sender tries again. `failed`: a back end did not accept it. `full`: the "
        "queue of an exporter overflowed. Each has an alert and a runbook.",
        [
            over_time(refused, "refused", ref="A"),
            over_time(failed, "failed", ref="B"),
            over_time(full, "full", ref="C"),
        ],
        panels.EVENTS,
        width=6,
    )
    used = f"max by (exporter) ({external.QUEUE_SIZE}) / max by (exporter) ({external.QUEUE_CAPACITY})"
    b.add(
        panels.lines(
            "Queues",
            "How full the queue of each exporter is. An alert fires above 80 %: the back end is slow or away.",
            [over_time(used, LEGEND_EXPORTER)],
            panels.SHARE,
        ).max(1),
        6,
    )


def _package(b: Board) -> None:
    # The values, not their increase: such a series begins with its first failure.
    errors = f"sum by ({COMPONENT}) ({query.select(m.ERRORS.series)})"
    b.bars(
        "Failures of its own",
        "Failures of the instrumentation, which do not affect requests, by component, since each process started. "
        "Please report them: the server's log has the first of each kind.",
        now(f'{errors} or label_replace(vector(0), "{COMPONENT}", "none", "", "")', query.legend(COMPONENT)),
        panels.COUNT,
        width=6,
    )
    dropped = f"sum by ({OBSERVER}) ({query.select(m.OBSERVER_DROPPED.series)})"
    b.bars(
        "Calls that observers missed",
        "Calls that slow or failing observers did not get, since each process started.",
        now(f'{dropped} or label_replace(vector(0), "{OBSERVER}", "none", "", "")', query.legend(OBSERVER)),
        panels.COUNT,
        width=6,
    )
    contradicted = f"sum by ({HEADER}) ({query.select(m.HEADERS_CONTRADICTED.series)})"
    b.bars(
        "Headers not believed",
        "Requests with a header that contradicts their body, since each process started: a broken client or proxy, or "
        "an attempt to hide a call.",
        now(f'{contradicted} or label_replace(vector(0), "{HEADER}", "none", "", "")', query.legend(HEADER)),
        panels.COUNT,
        width=4,
    )
    overflow = 'count({__name__=~"mcp_.*|otel_mcp_.*", otel_metric_overflow="true"}) or vector(0)'
    b.add(
        panels.number(
            "Series in overflow",
            "Metrics with more than 2,000 combinations of attributes: the rest is merged into one series. This fires "
            "an alert, since numbers by tool are wrong from then on.",
            over_time(overflow, "overflow"),
            panels.COUNT,
        ),
        4,
    )
    b.lines(
        "Collector's memory",
        "At 80 % of its limit, the Collector begins to refuse data.",
        [over_time(f"max by ({query.INSTANCE}) ({external.COLLECTOR_MEMORY})", query.legend(query.INSTANCE))],
        panels.BYTES,
        width=4,
    )


def _total(series: str, by: str) -> str:
    return f"sum by ({by}) (rate({series}[{query.RATE}]))"
