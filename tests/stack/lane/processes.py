"""Processes that end with the lane, however it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

STOPS_WITHIN: Final = 60.0


class NotUp(Exception):
    """A process ended, or did not answer in time."""


class Process:
    """One process, its output in a file."""

    def __init__(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], log: Path, folder: Path
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], within: float = 60) -> None:
        """Wait until it is ready.

        Raises:
            NotUp: It ended, or took too long; with the end of its log.
        """
        until = time.monotonic() + within
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            if ready():
                return
            time.sleep(0.1)
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise NotUp(f"{self.name} is not up:\n{tail}")

    def wait(self, within: float) -> int:
        """Wait for its end and return its exit code; raises `subprocess.TimeoutExpired`."""
        return self._process.wait(within)

    def stop(self) -> None:
        """End it: politely first."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOPS_WITHIN)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()


def answers(url: str) -> Callable[[], bool]:
    """Return a question: does this address answer 200?"""

    def ask() -> bool:
        try:
            with urlopen(url, timeout=2) as response:
                return response.status == 200
        except (URLError, OSError):
            return False

    return ask


def listens(port: int) -> Callable[[], bool]:
    """Return a question: does somebody listen on this port of loopback?"""

    def ask() -> bool:
        with socket.socket() as probe:
            probe.settimeout(2)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return ask


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
