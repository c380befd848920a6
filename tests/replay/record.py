"""Record live pairs as captures: ``python -m tests.replay.record``. Needs node; overwrites those of its own names."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.hosts.clients import INSPECTOR, SDK_1, SDK_1_12, SDK_2, Host
from tests.matrix.cells import CURRENT, FASTMCP_3, HANDWRITTEN, MCP_1_12, MCP_1_30, SERVERS, Cell
from tests.matrix.serving import served
from tests.replay.capture import FOLDER

_NAMES: Final[dict[object, str]] = {SDK_1: "ts1", SDK_1_12: "ts112", SDK_2: "ts2", INSPECTOR: "inspector"}
_CLI: Final = "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
_CALL: Final = (("--method", "tools/call", "--tool-name", "add", "--tool-arg", "a=1", "b=2"),)
PAIRS: Final = (
    ("mcp2", Cell(CURRENT, "sdk2", "stateful"), Host(SDK_1, "sdk1.mjs", "http")),
    ("mcp2", Cell(CURRENT, "sdk2", "stateless"), Host(SDK_1, "sdk1.mjs", "http")),
    ("mcp2", Cell(CURRENT, "sdk2", "stateful"), Host(SDK_2, "sdk2.mjs", "modern")),
    ("mcp2", Cell(CURRENT, "sdk2", "sse"), Host(SDK_2, "sdk2.mjs", "sse")),
    ("mcp2", Cell(CURRENT, "sdk2", "stateful"), Host(INSPECTOR, _CLI, "legacy", _CALL)),
    ("mcp2", Cell(CURRENT, "sdk2", "stateful"), Host(INSPECTOR, _CLI, "auto", _CALL)),
    ("fm4", Cell(CURRENT, "fastmcp_app", "stateless"), Host(SDK_2, "sdk2.mjs", "auto")),
    ("fm4", Cell(CURRENT, "fastmcp_app", "sse"), Host(SDK_1_12, "sdk1.mjs", "sse")),
    ("mcp1", Cell(MCP_1_30, "sdk1", "stateless"), Host(SDK_2, "sdk2.mjs", "auto")),
    ("mcp1", Cell(MCP_1_30, "sdk1", "json"), Host(SDK_2, "sdk2.mjs", "legacy")),
    ("mcp1", Cell(MCP_1_30, "sdk1", "sse"), Host(SDK_1, "sdk1.mjs", "sse")),
    ("mcp112", Cell(MCP_1_12, "sdk1", "stateful"), Host(SDK_1_12, "sdk1.mjs", "http")),
    ("fm3", Cell(FASTMCP_3, "fastmcp_app", "stateful"), Host(SDK_2, "sdk2.mjs", "auto")),
    ("fastapi", Cell(HANDWRITTEN, "fastapi_route", "json"), Host(SDK_1, "sdk1.mjs", "http")),
    ("litestar", Cell(SERVERS, "litestar_app", "json"), Host(SDK_2, "sdk2.mjs", "legacy")),
)


def main() -> None:
    """Record every pair, without the package at work."""
    for server, cell, host in PAIRS:
        client = _NAMES[host.package] + ("" if host.kind == "http" else f"-{host.kind}")
        name = f"L-{server}-{cell.mode}-{client}"
        with tempfile.TemporaryDirectory() as folder:
            record = Path(folder) / "exchanges"
            os.environ |= {"APP": cell.app, "RECORD": str(record)}
            with served(replace(cell, app="recorded"), None) as url:
                host.visit(f"{url}/sse" if cell.mode == "sse" else f"{url}/mcp", Path(folder) / "seen")
                time.sleep(1)  # A server of 2024-11-05 notices late that its client has gone.
            facts = {"scenario": name, "server": server, "mode": cell.mode, "client": client}
            exchanges = json.loads(record.read_text())
            text = json.dumps({**facts, **exchanges}, ensure_ascii=False, indent=1)
            (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        print(name, flush=True)


if __name__ == "__main__":
    main()
