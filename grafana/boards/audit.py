"""Who called what: from audit records in Loki. A caller is never on a metric, but for how many there are."""

from __future__ import annotations

from typing import Final

from otel_mcp import semconv as names

from . import contract as m
from . import panels, query
from .board import Board
from .names import label
from .targets import LOKI, counted, logs, now, over_time

_CALLER: Final = "caller"
_PSEUDO, _NAMED = label(names.ENDUSER_PSEUDO_ID), label(names.ENDUSER_ID)
_RECORDS: Final = (
    f'{{{query.SERVICE}="$service"}} |= "{names.EVENT_TOOL_CALL}" | {query.TOOL}=~"$tool" '
    f'| {_PSEUDO}=~"$caller" or {_NAMED}=~"$caller"'
)
"""Lines of an event are its name; who is named in one way has no label of the other, which `.*` matches."""
_WHO: Final = f'{_RECORDS} | label_format {_CALLER}="{{{{.{_NAMED}}}}}{{{{.{_PSEUDO}}}}}"'
_LINE: Final = " ".join(
    f"{{{{.{name}}}}}"
    for name in (_CALLER, query.CLIENT, query.TOOL, query.FAILURE, label(names.CALL_DURATION), query.SESSION)
)
_NEEDS: Final = (
    "Needs OTEL_PYTHON_MCP_AUDIT=events, and a Loki as collector/config/to-loki.yaml fills it: docs/audit.md."
)


def board() -> Board:
    """Return the dashboard of callers."""
    b = Board("otel-mcp-audit", "MCP / Who", "Who called which tool, when, and how it went.")
    b.logs().select("environment").service().select("tool").textbox("caller", "Caller", ".*")
    _numbers(b)
    _records(b)
    return b


def _numbers(b: Board) -> None:
    b.add(
        panels.number(
            "Callers today",
            "Users, else credentials, else addresses, that have called a tool since midnight UTC, give or take 1 %. "
            "Without audit too: Redis keeps a number, no names.",
            over_time(f"sum({query.shared(m.CALLERS_ACTIVE)})", "callers"),
            panels.COUNT,
        ),
        6,
    )
    b.add(
        panels.number(
            "Records",
            f"Audit records that match in the range on screen. {_NEEDS}",
            counted(f"sum(count_over_time({_RECORDS} [$__range]))"),
            panels.COUNT,
            nothing="0",
        ).datasource(LOKI),
        6,
    )
    b.add(
        panels.number(
            "Calls",
            "Tool calls in the same range, by metric. With all tools and callers chosen there are as many records; the "
            "edges of the range differ by what was not exported yet.",
            over_time(query.increase(m.OPERATION_DURATION.count, f'{query.METHOD}="tools/call"'), "calls"),
            panels.COUNT,
        ),
        6,
    )
    # The values, not their increase: such a series may begin with its first loss.
    lost = f"sum by ({query.REASON}) ({query.select(m.AUDIT_DROPPED.series)})"
    b.bars(
        "Records lost",
        "Records that no exporter has taken, by reason, since each process started. Anything here fires "
        "MCPAuditRecordsLost.",
        now(f'{lost} or label_replace(vector(0), "{query.REASON}", "none", "", "")', query.legend(query.REASON)),
        panels.COUNT,
        width=6,
    )


def _records(b: Board) -> None:
    for title, description, records in (
        ("Who calls most", "Calls by caller; paste one into *Caller* to see only its own.", _WHO),
        (
            "Whose calls fail",
            "Failed and refused calls by caller. Many refused of one caller: a limit, or somebody who tries. What "
            "authentication refuses unread (401, 403) has no record: see `otel_mcp.requests.refused`.",
            f'{_WHO} | {query.FAILURE}!=""',
        ),
    ):
        calls = f"topk(20, sum by ({_CALLER}) (count_over_time({records} [$__range])))"
        b.add(
            panels.bars(
                title, f"{description} {_NEEDS}", counted(calls, query.legend(_CALLER)), panels.COUNT
            ).datasource(LOKI),
            12,
        )
    b.add(
        panels.lines_of_text(
            "Calls",
            "Caller, client, tool, how it failed (nothing: it worked), seconds and session; open one for the rest. A "
            f"record leads to its trace. {_NEEDS}",
            logs(f'{_WHO} | line_format "{_LINE}"'),
        ),
        24,
        14,
    )
