"""The two servers: the same command, the same OpenTelemetry, one of them without otel_mcp."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import httpx

from examples.demo.server_process import free_port
from tests.support.servers import PLAIN

ROOT: Final = Path(__file__).resolve().parents[2]
WARNINGS: Final = ("Redis cannot be used", "Redis does not let us in")
RECOVERY: Final = "Redis can be used again"
_LOGGING: Final = ("--no-access-log", f"--log-config={ROOT / 'tests/faults/logging.json'}")
"""The line at recovery is for information, so that is logged, too."""


class Side:
    """One server as a process."""

    def __init__(self, folder: Path, otlp: str, redis_url: str, *, observed: bool) -> None:
        self.observed = observed
        self.service = "with" if observed else "without"
        self._log = folder / f"{self.service}.log"
        self._read = 0
        self.port = free_port()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        environment = {
            **inherited,
            **PLAIN,
            "OTEL_SERVICE_NAME": self.service,
            "OTEL_EXPORTER_OTLP_ENDPOINT": otlp,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_PYTHON_MCP_REDIS_URL": redis_url,
            "OTEL_PYTHON_MCP_MAX_NEW_SESSIONS": "100000",
            # As many spans on either side: the other one has none of HTTP, and exporting is what p99 is made of.
            "OTEL_PYTHON_MCP_HTTP_SPAN": "off",
            **({} if observed else {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "otel_mcp"}),
        }
        self._folder = Path(sys.executable).parent
        command = ["opentelemetry-instrument", "uvicorn", "tests.faults.app:app", f"--port={self.port}"]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(self._folder / command[0]), str(self._folder / command[1]), *command[2:], *_LOGGING],
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
                raise RuntimeError(self._log.read_text(errors="replace"))
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            httpx.get(f"http://127.0.0.1:{self.port}", trust_env=False)
        except httpx.HTTPError:
            return False
        return True

    def export(self) -> None:
        """Have it export its metrics."""
        httpx.post(f"http://127.0.0.1:{self.port}/export", trust_env=False).raise_for_status()

    def new_lines(self) -> list[str]:
        """What it has logged since this was asked last."""
        text = self._log.read_text(errors="replace")
        lines, self._read = text[self._read :].splitlines(), len(text)
        return lines

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
