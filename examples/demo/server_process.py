"""The demo's server as processes: uvicorn with its workers under `opentelemetry-instrument`.

The processes run in a session of their own, so that Ctrl-C in the terminal reaches only the demo,
which then ends them in order; whatever is left of the group is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

WORKERS: Final = 2
_ROOT: Final = Path(__file__).resolve().parents[2]
_STOP_AFTER: Final = 10.0


class ServerProcess:
    """Start the server on a port of loopback and stop it with all of its workers.

    Args:
        port: Where to listen.
        environment: All of its environment variables.
        log: The file to which the output of all the processes is appended.
        workers: How many processes serve.
    """

    def __init__(self, port: int, environment: Mapping[str, str], log: Path, workers: int = WORKERS) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    _installed("opentelemetry-instrument"),
                    _installed("uvicorn"),
                    "examples.demo.server:app",
                    f"--port={port}",
                    f"--workers={workers}",
                    "--timeout-graceful-shutdown=3",
                    "--no-access-log",
                ],
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._port = port

    def has_ended(self) -> bool:
        """Tell whether the server is gone."""
        return self._process.poll() is not None

    def is_ready(self) -> bool:
        """Tell whether a worker answers."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def is_ready_or_ended(self) -> bool:
        """Tell whether there is nothing to wait for."""
        return self.has_ended() or self.is_ready()

    def stop(self) -> None:
        """Let the server end by itself, then kill what is left of its process group."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_AFTER)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def free_port(preferred: int = 0) -> int:
    """Return a port of loopback that nobody listens on, the preferred one if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _installed(command: str) -> str:
    return str(Path(sys.executable).parent / command)
