"""Run the child process that looks at the server's environment, and hold what it reports."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from otel_mcp.cli.doctor.launch import AUTO_DIRECTORY, Launch

_CHILD: Final = Path(__file__).with_name("child.py")
_START: Final = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
_LINE: Final = 16 * 1024 * 1024
"""Bytes of one line of the report: all distributions of an environment."""
_QUIET: Final = {
    # Whatever the app exports by itself waits longer than the process lives.
    "OTEL_BSP_SCHEDULE_DELAY": "3600000",
    "OTEL_BLRP_SCHEDULE_DELAY": "3600000",
    "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
}


@dataclass(frozen=True, slots=True)
class Distribution:
    """One installed distribution."""

    version: str
    requires: tuple[str, ...] = ()
    provides_module: bool = False
    """Only of a distribution called `otel-mcp`: it has a module of our name."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is installed where the server runs."""

    executable: str
    version: str
    distributions: Mapping[str, Distribution]
    entry_points: Mapping[str, Sequence[tuple[str, str, str]]]
    """Name, value and distribution, by group."""
    origin: str | None = None
    """The file of the module `otel_mcp`."""

    def names(self, group: str) -> set[str]:
        """The names of the entry points of a group."""
        return {name for name, _, _ in self.entry_points.get(group, ())}


@dataclass(slots=True)
class Loaded:
    """What became of the instrumentations, the exporters and the app when they were loaded."""

    siblings: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    exporters: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    libraries: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    app: dict[str, Any] | None = None
    seams: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    """Module, attribute, and ``attached``, ``open`` or ``absent``."""
    instrumented: bool = False
    broken: dict[str, Any] | None = None
    timed_out: str | None = None
    """What was under way when time was up."""

    def add(self, facts: dict[str, Any]) -> None:
        """Take up one line of the report."""
        if "sibling" in facts:
            self.siblings.append(facts)
        elif "exporter" in facts:
            self.exporters.append(facts)
        elif "library" in facts:
            self.libraries.append(facts)
        elif "app" in facts:
            self.app = facts
        elif "seams" in facts:
            self.seams = [(module, name, state) for module, name, state in facts["seams"]]
            self.instrumented = facts["instrumented"]
        elif "broken" in facts:
            self.broken = facts


class Inspection:
    """A child process in the server's interpreter. Use it as an asynchronous context manager."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._process: Process | None = None

    async def __aenter__(self) -> Inspection:
        launch = self._launch
        self._process = await asyncio.create_subprocess_exec(
            launch.interpreter or sys.executable,
            *launch.flags,
            "-c",
            _START,
            str(_CHILD),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env=_environment(launch.env),
            limit=_LINE,
            start_new_session=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    # The app may have started processes of its own; they are of the same group.
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            await self._process.wait()

    async def inventory(self, seconds: float) -> Inventory:
        """Return what is installed.

        Raises:
            RuntimeError: the interpreter says nothing of use.
        """
        try:
            facts = await asyncio.wait_for(self._line(), seconds)
        except asyncio.TimeoutError:
            raise RuntimeError("the interpreter does not answer") from None
        if facts is None or "inventory" not in facts:
            raise RuntimeError("the interpreter does not answer")
        found = facts["inventory"]
        return Inventory(
            found["executable"],
            found["version"],
            {
                name: Distribution(held["version"], tuple(held["requires"]), held.get("provides_module", False))
                for name, held in found["distributions"].items()
            },
            {group: [(name, value, dist) for name, value, dist in points]
             for group, points in found["entry_points"].items()},
            found["origin"],
        )  # fmt: skip

    async def load(self, exporters: Sequence[tuple[str, str]], disabled: set[str], seconds: float) -> Loaded:
        """Load instrumentations and the app, and return what became of them, at most after `seconds`."""
        launch, loaded = self._launch, Loaded()
        task = {
            "initialise": launch.initialises or not launch.given or launch.app is None,
            "disabled": sorted(disabled),
            "exporters": exporters,
            "app": asdict(launch.app) if launch.app is not None else None,
            "server": launch.server,
        }
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task).encode() + b"\n")
        loaded.timed_out = "loading the instrumentations"
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._read(loaded), seconds)
        return loaded

    async def _read(self, loaded: Loaded) -> None:
        await _sent(self._process)
        step = None
        while (facts := await self._line()) is not None:
            step = facts.get("step", step)
            if facts.get("step") == "loaded":
                loaded.timed_out = f"importing {self._launch.app or 'the libraries'}"
            loaded.add(facts)
        loaded.timed_out = None
        if step != "done" and loaded.broken is None:
            loaded.broken = {"error": "the process ended by itself", "where": "", "missing": ""}

    async def _line(self) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None


async def _sent(process: Process | None) -> None:
    """Send what was written, and no more: an app that reads standard input finds its end."""
    if process is not None and process.stdin is not None:
        with suppress(ConnectionError):
            await process.stdin.drain()
            process.stdin.close()


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """The server's environment, in which nothing is initialised before the child does it, and nothing is sent."""
    own = {**env, **_QUIET}
    own.pop("OTEL_CONFIG_FILE", None)
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    own["PYTHONPATH"] = os.pathsep.join(
        path for path in paths if not Path(path).as_posix().rstrip("/").endswith(AUTO_DIRECTORY)
    )
    if not own["PYTHONPATH"]:
        del own["PYTHONPATH"]
    return own
