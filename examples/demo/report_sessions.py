"""Session documents as a table, and one of them as it stands in Redis."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.json import JSON
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .otlp_store import TelemetryStore
from .sessions import KEY_PREFIX, SeenSession
from .views import processes_by_session

_SHOWN_CALLS: Final = 1
_SHOWN_ID: Final = 10


def sessions_table(sessions: Sequence[SeenSession], telemetry: TelemetryStore) -> Table:
    """Return a table of the sessions, each as its document is, or was before it expired.

    Only the column `processes` comes from the spans: how many processes served the session.
    """
    table = Table(title="Sessions in Redis (GET mcp_session:*)", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("session", "client", "protocol", "source", "active"):
        table.add_column(heading, no_wrap=True)
    for heading in ("calls", "errors", "requests", "processes"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("ends", no_wrap=True)
    table.padding = (0, 1, 0, 0)
    processes = processes_by_session(telemetry)
    for seen in sessions:
        document = seen.document
        table.add_row(
            _short(document.session_id),
            f"{document.client_name or '?'} {document.client_version or ''}",
            document.protocol_version or "",
            document.source or "",
            _clock(document.last_activity),
            str(document.tool_call_count),
            str(document.error_count),
            str(document.request_count),
            str(len(processes.get(document.session_id, ()))),
            _state(seen),
        )
    return table


def session_document(seen: SeenSession) -> Panel:
    """Return one document as JSON, its list of tool calls cut short."""
    document = json.loads(seen.text)
    calls: list[Any] = document["tool_calls"]
    document["tool_calls"] = calls[-_SHOWN_CALLS:]
    left_out = len(calls) - len(document["tool_calls"])
    title = f"GET {KEY_PREFIX}{seen.session_id}"
    note = f"{left_out} earlier tool calls left out here" if left_out else None
    return Panel(JSON.from_data(document), title=title, subtitle=note, title_align="left")


def session_story(seen: SeenSession, redis_url: str) -> Panel:
    """Return what the command line says of a session."""
    command = ["otel-mcp", "show", seen.session_id]
    program = Path(sys.executable).with_name(command[0])
    environment = {"OTEL_PYTHON_MCP_REDIS_URL": redis_url, "COLUMNS": "112"}
    done = subprocess.run(
        [program, *command[1:], "-o", "table"], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    return Panel(Text((done.stdout or done.stderr).rstrip()), title=" ".join(command), title_align="left")


def _state(seen: SeenSession) -> Text:
    if seen.document.ended is not None:
        return Text(seen.document.ended.reason, "yellow")
    if seen.expires_in is None:
        return Text("expired", "yellow")
    return Text(f"in {seen.expires_in} s", "green")


def _short(session_id: str) -> str:
    return session_id if len(session_id) <= _SHOWN_ID else f"{session_id[:_SHOWN_ID]}…"


def _clock(moment: datetime) -> str:
    return moment.astimezone().strftime("%H:%M:%S")
