"""The soaked server as a process, seen from outside: memory, descriptors, threads, connections."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import httpx

from examples.demo.server_process import free_port
from tests.support.servers import PLAIN

ROOT: Final = Path(__file__).resolve().parents[2]
SMALL_BOUNDS: Final = {
    "OTEL_PYTHON_MCP_MAX_SESSIONS": "200",
    "OTEL_PYTHON_MCP_MAX_PENDING_CALLS": "500",
    "OTEL_PYTHON_MCP_MAX_NEW_SESSIONS": "100000",
    "OTEL_PYTHON_MCP_SESSION_TTL": "10",
    "OTEL_PYTHON_MCP_SESSION_IDLE_GAP": "8",
    "OTEL_PYTHON_MCP_SWEEP_INTERVAL": "2",
}
"""So that every bound is met, and every session expires, while the server warms up."""


class SoakServer:
    """uvicorn under ``opentelemetry-instrument``, as a user would start it."""

    def __init__(self, redis_url: str, otlp: str, log: Path, *, leak: str = "", observed: bool = True) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        environment = {
            **inherited,
            **PLAIN,
            **SMALL_BOUNDS,
            "OTEL_SERVICE_NAME": "soak",
            "OTEL_EXPORTER_OTLP_ENDPOINT": otlp,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRIC_EXPORT_INTERVAL": "5000",
            "OTEL_PYTHON_MCP_REDIS_URL": redis_url,
            "SOAK_LEAK": leak,
            **({} if observed else {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "otel_mcp"}),
        }
        command = ["opentelemetry-instrument", "uvicorn", "tests.soak.app:app", f"--port={self.port}"]
        folder = Path(sys.executable).parent
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    str(folder / command[0]),
                    str(folder / command[1]),
                    *command[2:],
                    "--no-access-log",
                    "--timeout-keep-alive=30",
                ],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Until it answers."""
        until = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start:\n{self.log.read_text()}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            httpx.get(f"{self.url}/health", trust_env=False)
        except httpx.HTTPError:
            return False
        return True

    def outside(self, store: Any) -> dict[str, float]:
        """Figures of the process; `store` is a client of its Redis."""
        proc = Path(f"/proc/{self._process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return {
            "rss KiB": float(status["VmRSS"].split()[0]),
            "threads": float(status["Threads"]),
            "descriptors": float(len(os.listdir(proc / "fd"))),
            "connections": float(store.info("clients")["connected_clients"]),
            "deadlines": float(store.zcard("otel_mcp:soak:deadlines")),
        }

    def stop(self) -> float:
        """End it in order; the seconds that this took."""
        began = time.monotonic()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return time.monotonic() - began
