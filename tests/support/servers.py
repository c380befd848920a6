"""Real MCP servers as processes: how they are started, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Final

from examples.demo.otlp_receiver import OtlpReceiver
from examples.demo.otlp_store import TelemetryStore
from examples.demo.server_process import free_port
from tests.support.waiting import wait_until

APPS: Final = Path(__file__).resolve().parents[1] / "process" / "apps"
BIN: Final = Path(sys.executable).parent
STOP_WITHIN: Final = 120.0

SDK: Final = "sdk"
FASTMCP: Final = "fastmcp"
TWO_WORKERS: Final = "uvicorn app:app --port={port} --workers 2 --timeout-worker-healthcheck 60"
"""Without the last option a worker that imports for more than five seconds is taken for hung, and killed."""
PLAIN: Final = {"UVICORN_LOOP": "asyncio", "UVICORN_HTTP": "h11"}
"""What uvicorn takes by itself; the tests have what comes with ``uvicorn[standard]``, which it takes where it can."""
PROMPT: Final = {
    "OTEL_METRIC_EXPORT_INTERVAL": "250",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
    "OTEL_BLRP_SCHEDULE_DELAY": "100",
    "OTEL_PYTHON_MCP_FLUSH_INTERVAL": "0.2",
}
"""For servers that are asked while they run."""


@dataclass(frozen=True)
class Launch:
    """A command line as a user would type it after ``opentelemetry-instrument``."""

    library: str
    """Which folder of `APPS` it is started in."""
    name: str
    command: str
    """``{port}`` stands for the port."""
    stateless: bool = False
    path: str = "/mcp"
    environment: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    """In addition to the standard OTEL variables and the URL of Redis."""

    def __str__(self) -> str:
        return f"{self.library}-{self.name}"


def end_group(leader: subprocess.Popen[bytes], within: float) -> None:
    """Ask a process to end, and end what is left of its group after so many seconds: workers may outlive it."""
    leader.terminate()
    with suppress(subprocess.TimeoutExpired):
        leader.wait(within)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


class ServerFailed(Exception):
    """The server did not come up; the text is the end of its log."""


class Server:
    """One server with an OTLP receiver of its own; may be started again on the same port.

    It gets the standard OTEL variables and the URL of Redis, and those of its launch.
    Leaving the `with` block ends the receiver and every process that was started.
    """

    def __init__(self, launch: Launch, *, service: str, redis_url: str, folder: Path) -> None:
        self.launch = launch
        self.service = service
        self.redis_url = redis_url
        self._log = folder / f"{service}.log"
        self._port = free_port()
        self._receiver = OtlpReceiver()
        self._receiver.start()
        self._process: subprocess.Popen[bytes] | None = None
        self.started_after = 0.0
        """Seconds that its start took, which says how busy this machine is."""

    @property
    def url(self) -> str:
        """The MCP endpoint."""
        return f"http://127.0.0.1:{self._port}{self.launch.path}"

    @property
    def telemetry(self) -> TelemetryStore:
        """What it has exported so far."""
        return self._receiver.telemetry

    def __enter__(self) -> Server:
        if self._process is None:
            self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it, and its receiver."""
        self.stop()
        self._receiver.stop()

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            ServerFailed: It ended, or did not answer in time.
        """
        began = time.monotonic()
        command = [part.format(port=self._port) for part in self.launch.command.split()]
        with self._log.open("ab") as log:
            self._process = process = subprocess.Popen(
                [str(BIN / "opentelemetry-instrument"), *command],
                cwd=APPS / self.launch.library,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(lambda: process.poll() is not None or self._answers())
        if process.poll() is not None or not self._answers():
            self.close()
            raise ServerFailed(self.log())
        self.started_after = time.monotonic() - began

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End it and its process group at once, as a host that fails does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def has_ended(self) -> bool:
        """Tell whether the process that was started is gone."""
        return self._process is None or self._process.poll() is not None

    def stop(self) -> float:
        """End it and whatever is left of its process group; return the seconds that this took."""
        process, self._process = self._process, None
        if process is None:
            return 0.0
        began = time.monotonic()
        end_group(process, STOP_WITHIN)
        return time.monotonic() - began

    def log(self) -> str:
        """What its processes wrote to the terminal."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    def _answers(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=2)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            return True
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def _environment(self) -> dict[str, str]:
        # With byte code, as a user's server: compiling the package again is most of what some starts would take.
        left_out = ("OTEL_", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        return {
            **inherited,
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "NO_PROXY": "127.0.0.1",
            "PORT": str(self._port),
            "STATELESS": "1" if self.launch.stateless else "",
            "OTEL_SERVICE_NAME": self.service,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self._receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_PYTHON_MCP_REDIS_URL": self.redis_url,
            **self.launch.environment,
        }
