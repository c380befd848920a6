"""uvicorn under ``opentelemetry-instrument`` as a process, as a user would start it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx

from examples.demo.server_process import free_port
from tests.support.servers import PLAIN

ROOT: Final = Path(__file__).resolve().parents[2]
_READY_WITHIN: Final = 60
_STOP_WITHIN: Final = 60


class Uvicorn:
    """A server that exports to `otlp`; without us where it is not `observed`."""

    def __init__(
        self, app: str, log: Path, otlp: str, environment: Mapping[str, str], *options: str, observed: bool
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        folder = Path(sys.executable).parent
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [folder / "opentelemetry-instrument", folder / "uvicorn", app, f"--port={self.port}", *options],
                cwd=ROOT,
                env={
                    **inherited,
                    **PLAIN,
                    "OTEL_EXPORTER_OTLP_ENDPOINT": otlp,
                    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                    **({} if observed else {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "otel_mcp"}),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            RuntimeError: It ended, or did not answer in time.
        """
        until = time.monotonic() + _READY_WITHIN
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start:\n{self.log.read_text(errors='replace')}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            httpx.get(self.url, trust_env=False)
        except httpx.HTTPError:
            return False
        return True

    def stop(self) -> float:
        """End it in order; return the seconds that this took."""
        began = time.monotonic()
        self.process.terminate()
        try:
            self.process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return time.monotonic() - began
