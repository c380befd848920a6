"""Run the child process that inspects the server's environment, and collect its report."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NotRequired, TypedDict

from otel_mcp.cli.doctor.launch import SERVERS, Launch, is_auto

_CHILD: Final = Path(__file__).with_name("child.py")
_RUN_SCRIPT: Final = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
_MAX_LINE: Final = 16 * 1024 * 1024
"""Bytes of one line of the report; the longest has all distributions of an environment."""
_NO_EXPORT: Final = {
    # Intervals longer than the process lives, for what the app exports by itself.
    "OTEL_BSP_SCHEDULE_DELAY": "3600000",
    "OTEL_BLRP_SCHEDULE_DELAY": "3600000",
    "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
}


class Distribution(TypedDict):
    """One installed distribution."""

    version: str
    requires: Sequence[str]
    provides_module: NotRequired[bool]
    """Only for a distribution called `otel-mcp`: whether it has a module of our name."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The packages that are installed where the server runs."""

    executable: str
    version: str
    distributions: dict[str, Distribution]
    entry_points: dict[str, list[tuple[str, str, str]]]
    """Name, value and distribution, by group."""
    origin: str | None = None
    """The file of the module `otel_mcp`."""

    def names(self, group: str) -> set[str]:
        """Return the names of the entry points of a group."""
        return {name for name, _, _ in self.entry_points.get(f"opentelemetry_{group}", ())}


@dataclass(slots=True)
class Loaded:
    """The results of loading the instrumentations, the exporters and the app."""

    siblings: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    exporters: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    app: dict[str, Any] | None = None
    seams: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    """Module, attribute, and ``attached``, ``open`` or ``absent``."""
    instrumented: bool = False
    broken: dict[str, Any] | None = None
    timed_out: str | None = None
    """The step that did not end in time."""

    def add(self, facts: dict[str, Any]) -> None:
        """Add one line of the report."""
        match facts:
            case {"sibling": _}:
                self.siblings.append(facts)
            case {"exporter": _}:
                self.exporters.append(facts)
            case {"app": _}:
                self.app = facts
            case {"broken": _}:
                self.broken = facts
            case _:
                self.seams = facts.get("seams", self.seams)
                self.instrumented = facts.get("instrumented", self.instrumented)


class Inspection:
    """The child process; an asynchronous context manager."""

    _process: Process

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    async def __aenter__(self) -> Inspection:
        env = {**self._launch.env, **_NO_EXPORT}
        env.pop("OTEL_CONFIG_FILE", None)
        # Without the entry that loads instrumentations at start: the child does that itself.
        paths = [path for path in env.pop("PYTHONPATH", "").split(os.pathsep) if path and not is_auto(path)]
        self._process = await asyncio.create_subprocess_exec(
            self._launch.interpreter or sys.executable,
            *(*self._launch.flags, "-c", _RUN_SCRIPT, str(_CHILD)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={**env, "PYTHONPATH": os.pathsep.join(paths)} if paths else env,
            limit=_MAX_LINE,
            start_new_session=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                # Processes that the app started are in the same group.
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        await self._process.wait()

    async def inventory(self, seconds: float) -> Inventory:
        """Return the installed packages.

        Raises:
            RuntimeError: the child process did not report them.
        """
        facts = None
        with suppress(TimeoutError):
            facts = await asyncio.wait_for(self._line(), seconds)
        if facts is None or "inventory" not in facts:
            raise RuntimeError("the interpreter does not answer")
        return Inventory(**facts["inventory"])

    async def load(self, exporters: Sequence[tuple[str, str]], disabled: set[str], seconds: float) -> Loaded:
        """Load instrumentations and the app, and return the results after at most `seconds`."""
        launch, loaded = self._launch, Loaded(timed_out="loading the instrumentations")
        known = SERVERS.get(launch.server or "")
        task = {
            "initialise": launch.initialises or not launch.given or launch.app is None,
            "disabled": sorted(disabled),
            "exporters": exporters,
            "app": asdict(launch.app) if launch.app is not None else None,
            "modules": known.modules if known is not None else (),
        }
        with suppress(TimeoutError):
            await asyncio.wait_for(self._read(loaded, json.dumps(task).encode() + b"\n"), seconds)
        return loaded

    async def _read(self, loaded: Loaded, task: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(task)
        with suppress(ConnectionError):
            await self._process.stdin.drain()
            # An app that reads standard input gets end of file.
            self._process.stdin.close()
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
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None
