"""A cell's server as a process: with the package at work, or as it would be without."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final

from examples.demo.server_process import free_port
from tests.matrix.cells import Cell
from tests.matrix.environments import python_of
from tests.support.servers import end_group

APPS: Final = Path(__file__).parent / "apps"
_READY_WITHIN: Final = 120.0
"""Seconds; a busy machine imports slowly."""
STOP_WITHIN: Final = 60.0


class ServerFailed(Exception):
    """The text is what went wrong, and the end of the server's log."""


@contextmanager
def served(
    cell: Cell,
    endpoint: str | None,
    *,
    apps: Path = APPS,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Generator[str]:
    """Serve a cell on loopback; the value is its root URL.

    Args:
        cell: what to serve.
        endpoint: where telemetry goes by OTLP; ``None`` = the server runs without any instrumentation.
        apps: the folder of the cell's module.
        environment: variables of this run.
        log: where to leave what the server wrote to its terminal.

    Raises:
        ServerFailed: it did not start, or the block raised.
    """
    port = free_port()
    with log.open("w+b") if log else TemporaryFile() as written:
        server = start(cell, endpoint, port, written, apps=apps, environment=environment)
        try:
            wait_for(port, server)
            yield f"http://127.0.0.1:{port}"
        except Exception as error:
            written.seek(0)
            lines = written.read().decode(errors="replace").splitlines()[-15:]
            raise ServerFailed("\n".join([f"{type(error).__name__}: {error}", *lines])) from error
        finally:
            end_group(server, STOP_WITHIN)


def start(
    cell: Cell,
    endpoint: str | None,
    port: int,
    log: IO[bytes],
    *,
    apps: Path = APPS,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the server of a cell on a port, at the head of a process group of its own."""
    bin_folder = python_of(cell.library).parent
    command = [part.format(app=f"{cell.app}:app", port=port) for part in cell.server.command.split()]
    command[0] = str(bin_folder / command[0])
    if endpoint is not None:
        command.insert(0, str(bin_folder / "opentelemetry-instrument"))
    return subprocess.Popen(
        command,
        cwd=apps,
        env={**_environment(cell, endpoint), "PYTHONPATH": str(apps), **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _environment(cell: Cell, endpoint: str | None) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHONPATH"))}
    given = {"MODE": cell.mode, "NO_PROXY": "127.0.0.1"}
    if endpoint is not None:
        given |= {
            "OTEL_SERVICE_NAME": "matrix",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
    return {**inherited, **given, **dict(cell.environment)}


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until it listens.

    Raises:
        RuntimeError: it has ended.
        TimeoutError: it does not.
    """
    deadline = time.monotonic() + _READY_WITHIN
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError("the server has ended")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the server does not listen")
