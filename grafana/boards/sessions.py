"""How many sessions begin, how they go and how they end."""

from __future__ import annotations

from otel_mcp import semconv as names

from . import agents, links, outcomes, panels, query
from . import contract as m
from .board import Board
from .targets import buckets, now, over_time, search

LEGEND_SERVICE = query.legend(query.SERVICE, query.ENVIRONMENT)


def board() -> Board:
    """Return the dashboard of the life of sessions."""
    b = Board(
        "otel-mcp-sessions",
        "MCP / Sessions",
        "How many sessions begin, how they go, how long they last, and how they end.",
    )
    b.traces().select("environment").service().select("client")
    b.choice("probes", "Probes", hidden=query.PROBE, shown="none").mark_deploys()
    b.choice("outcome", "Outcome", **{name.replace("_", " "): name for name in query.OUTCOMES})
    _population(b.row("How many"))
    agents.connections(b.row("Connections"))
    outcomes.went(b.row("How they went"))
    outcomes.restarts(b.row("Restarts"))
    _endings(b.row("How they end"))
    _shape(b.row("How long and how busy"))
    _streams(b.row("Streams and leaks"))
    _list(b.row("Which ones"))
    return b


def _population(b: Board) -> None:
    b.lines(
        "Active sessions",
        "Sessions in the shared store. All replicas report the same number, so the panel shows the largest; no line "
        "means that the store does not answer.",
        [over_time(query.shared(m.SESSION_ACTIVE), LEGEND_SERVICE)],
        panels.COUNT,
    )
    b.lines(
        "Sessions held by each process",
        "Sessions in each process's memory. One process far above the others: sticky routing, or a leak.",
        [
            over_time(
                f"sum by ({query.INSTANCE}) ({query.select(m.SESSION_LOCAL.series)})",
                query.legend(query.INSTANCE),
            )
        ],
        panels.COUNT,
        stacked=True,
    )
    b.lines(
        "Beginnings and ends",
        "Sessions that began, were resumed after a restart, or ended, per second. More beginnings than ends for hours: "
        "sessions leak, or clients open one per call.",
        [
            over_time(query.rate(m.SESSION_STARTED.series), "started", ref="A"),
            over_time(query.rate(m.SESSION_RESUMED.series), "resumed", ref="B"),
            over_time(query.rate(m.SESSION_ENDED.series), "ended", ref="C"),
        ],
        panels.EVENTS,
    )
    b.rates(
        "Beginnings by source",
        "How sessions were recognised. Many `inferred` ones: clients that send no id, recognised by caller, address "
        "and name; see the documentation of session sources.",
        m.SESSION_STARTED.series,
        by=query.SOURCE,
        unit=panels.EVENTS,
    )
    b.rates(
        "Beginnings by protocol version",
        "Which revisions new sessions speak.",
        m.SESSION_STARTED.series,
        by=query.PROTOCOL,
        unit=panels.EVENTS,
    )
    b.lines(
        "Claims to a session that were not followed",
        "`limit`: more new sessions a minute than allowed, from a flood or a client that forgets its id. `principal`: "
        "an id used with another user's credentials; find out by whom.",
        [over_time(query.rate(m.SESSION_REJECTED.series, by=query.REASON), query.legend(query.REASON))],
        panels.EVENTS,
    )


def _active(then: str = "") -> str:
    """Return the number of sessions in the store, now or `then` (an offset)."""
    return f"sum({query.shared(m.SESSION_ACTIVE, then)})"


def _endings(b: Board) -> None:
    by_reason = query.legend(query.END_REASON)
    b.bars(
        "Reasons",
        "How sessions ended in the selected time range. `client_delete`: the client closed it; `expired`: nobody did; "
        "`server_closed`: the server did; `replaced`: it became part of a conversation, or another one continues it.",
        now(query.increase(m.SESSION_ENDED.series, by=query.END_REASON), by_reason),
        panels.COUNT,
    )
    b.lines(
        "Ends by reason",
        "The same over time. Many `expired` one TTL after a deploy: clients did not come back.",
        [over_time(query.rate(m.SESSION_ENDED.series, by=query.END_REASON), by_reason)],
        panels.EVENTS,
        stacked=True,
    )
    started, ended = (query.increase(x.series, window="1h") for x in (m.SESSION_STARTED, m.SESSION_ENDED))
    b.add(
        panels.lines(
            "Unaccounted sessions, over an hour",
            "Sessions that began but neither ended nor are active: begun minus ended, compared with the change of the "
            "active ones. Both lines normally move together; a growing gap is a leak. The second line begins an hour "
            "after the service.",
            [
                over_time(f"{started} - {ended}", "began minus ended", ref="A"),
                over_time(f"{_active()} - {_active(' offset 1h')}", "change of active", ref="B"),
            ],
            panels.COUNT,
        ).axis_centered_zero(True),
        8,
    )


def _shape(b: Board) -> None:
    for metric, title, description, unit in (
        (
            m.SESSION_DURATION,
            "Duration",
            "From the first to the last activity of ended sessions. Two bands mean two kinds of clients.",
            panels.SECONDS,
        ),
        (
            m.SESSION_TOOL_CALLS,
            "Tool calls per session",
            "How many tools a session calls. A band at zero: clients that connect and never call.",
            panels.COUNT,
        ),
    ):
        b.add(panels.heat(title, description, buckets(query.heat(metric)), unit), 8)
        b.lines(
            f"{title}, quantiles",
            f"{description} Median, 95th percentile and mean.",
            [
                over_time(query.quantile(0.5, metric), "p50", ref="A"),
                over_time(query.quantile(0.95, metric), "p95", ref="B"),
                over_time(f"{query.rate(metric.sum)} / ({query.rate(metric.count)} > 0)", "mean", ref="C"),
            ],
            unit,
        )
        if metric is m.SESSION_DURATION:
            _unused(b)
    b.lines(
        "Median duration by end reason",
        "Whether sessions that expire are shorter than closed ones: then clients crash or give up.",
        [over_time(query.quantile(0.5, m.SESSION_DURATION, by=query.END_REASON), query.legend(query.END_REASON))],
        panels.SECONDS,
    )


def _unused(b: Board) -> None:
    none = query.increase(m.SESSION_TOOL_CALLS.bucket, 'le=~"0|0.0"')
    b.add(
        panels.number(
            "Sessions without a tool call",
            "Share of ended sessions without a tool call: health checks, scanners, or clients that connect to all "
            "their servers at start.",
            now(query.share(none, query.increase(m.SESSION_TOOL_CALLS.count)), "unused"),
            panels.SHARE,
            nothing="none ended",
        ),
        8,
    )


def _streams(b: Board) -> None:
    b.lines(
        "Transport sessions held, and sessions that live",
        "Sessions that the SDK holds in memory, in all processes, compared with live sessions. If they differ for "
        "long, clients leave without a DELETE and nothing removes their sessions: memory grows until a restart.",
        [
            over_time(f"sum({query.select(m.TRANSPORT_SESSIONS.series)})", "held by the SDK", ref="A"),
            over_time(_active(), "live", ref="B"),
        ],
        panels.COUNT,
    )
    b.lines(
        "Transport sessions held by each process",
        "The same by process. A line that only rises from the start of its process is a leak.",
        [
            over_time(
                f"sum by ({query.INSTANCE}) ({query.select(m.TRANSPORT_SESSIONS.series)})",
                query.legend(query.INSTANCE),
            )
        ],
        panels.COUNT,
    )
    b.lines(
        "Open streams",
        "`get`: for messages of the server's own; `listen`: subscriptions of 2026-07-28; `sse`: the transport of "
        "2024-11-05; `post`: answers that stream for a second or more. Each occupies a connection.",
        [over_time(f"sum by ({query.KIND}) ({query.select(m.STREAM_ACTIVE.series)})", query.legend(query.KIND))],
        panels.COUNT,
        stacked=True,
    )
    b.lines(
        "Duration of streams that ended, half of them",
        "Median by kind. A line that stays at 60 s or 5 min: a proxy closes streams; raise its timeout.",
        [over_time(query.quantile(0.5, m.STREAM_DURATION, by=query.KIND), query.legend(query.KIND))],
        panels.SECONDS,
    )
    b.rates(
        "Streams that ended, by client",
        "A client far above the others reopens its stream all the time: it polls, or something closes its streams.",
        m.STREAM_DURATION.count,
        by=query.CLIENT,
        unit=panels.EVENTS,
    )


def _list(b: Board) -> None:
    b.add(
        panels.found(
            "Sessions that ended",
            "One row per session, newest first, from the `mcp.session` spans in Jaeger; a click on the id shows the "
            "session from its first to its last call. Empty unless OTEL_PYTHON_MCP_SESSION_SPAN is on.",
            search(operation=names.SPAN_SESSION),
        ).override_by_name("traceID", [panels.prop("links", [links.session_story("traceID")])]),
        12,
        10,
    )
    b.add(
        panels.found(
            "Sessions that went so",
            "The same, with the outcome that is selected above.",
            search(operation=names.SPAN_SESSION, tags=f'{names.SESSION_OUTCOME}="$outcome"'),
        ).override_by_name("traceID", [panels.prop("links", [links.session_story("traceID")])]),
        12,
        10,
    )
