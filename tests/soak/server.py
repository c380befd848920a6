"""The soaked server as a process, seen from outside: memory, descriptors, threads, connections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from tests.support.uvicorn import Uvicorn

SMALL_BOUNDS: Final = {
    "OTEL_PYTHON_MCP_MAX_SESSIONS": "200",
    "OTEL_PYTHON_MCP_MAX_PENDING_CALLS": "500",
    "OTEL_PYTHON_MCP_MAX_NEW_SESSIONS": "100000",
    "OTEL_PYTHON_MCP_SESSION_TTL": "10",
    "OTEL_PYTHON_MCP_SESSION_IDLE_GAP": "8",
    "OTEL_PYTHON_MCP_SWEEP_INTERVAL": "2",
}
"""So that every bound is met, and every session expires, while the server warms up."""


class SoakServer(Uvicorn):
    """The server of mixed traffic, with small bounds."""

    def __init__(self, redis_url: str, otlp: str, log: Path, *, leak: str = "", observed: bool = True) -> None:
        environment = {
            **SMALL_BOUNDS,
            "OTEL_SERVICE_NAME": "soak",
            "OTEL_METRIC_EXPORT_INTERVAL": "5000",
            "OTEL_PYTHON_MCP_REDIS_URL": redis_url,
            "SOAK_LEAK": leak,
        }
        options = ("--no-access-log", "--timeout-keep-alive=30")
        super().__init__("tests.soak.app:app", log, otlp, environment, *options, observed=observed)

    def outside(self, store: Any) -> dict[str, float]:
        """Figures of the process; `store` is a client of its Redis."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return {
            "rss KiB": float(status["VmRSS"].split()[0]),
            "threads": float(status["Threads"]),
            "descriptors": float(len(os.listdir(proc / "fd"))),
            "connections": float(store.info("clients")["connected_clients"]),
            "deadlines": float(store.zcard("otel_mcp:soak:deadlines")),
        }
