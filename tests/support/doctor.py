"""Environments for ``otel-mcp doctor``: a healthy one with real servers behind it, of which a test breaks one thing."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import ClassVar

from otel_mcp.cli.doctor import diagnose
from otel_mcp.cli.doctor.inspection import Inspection, Inventory, Loaded
from otel_mcp.cli.doctor.launch import Launch
from otel_mcp.cli.doctor.report import Finding

BARE_APP = "async def app(scope, receive, send):\n    pass\n"
COMMAND = "opentelemetry-instrument uvicorn app:app"


@dataclass
class Environment:
    """A folder with an app, variables, and what starts the server."""

    folder: Path
    variables: dict[str, str]
    command: str = COMMAND
    service: str = field(default_factory=lambda: f"shop-{secrets.token_hex(3)}")

    def __post_init__(self) -> None:
        """Begin with an app that imports quickly, and nothing of the machine that runs the tests."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHON"))}
        path = os.pathsep.join((str(Path(sys.executable).parent), inherited.get("PATH", "")))
        self.variables = {**inherited, "PATH": path, "OTEL_SERVICE_NAME": self.service, **self.variables}
        self.app(BARE_APP)

    def app(self, text: str) -> None:
        """Write the module of the app."""
        (self.folder / "app.py").write_text(dedent(text))

    def distribution(
        self, name: str, module: str = "", points: str = "", metadata: str = "", version: str = "1.0"
    ) -> None:
        """Put a distribution onto PYTHONPATH, as pip would leave it."""
        packages = self.folder / "packages"
        info = packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
        (info / "entry_points.txt").write_text(dedent(points))
        (packages / f"{name.replace('-', '_')}_module.py").write_text(dedent(module))
        self.variables["PYTHONPATH"] = str(packages)

    def diagnose(self, seconds: float = 60) -> list[Finding]:
        """Ask the doctor."""
        return asyncio.run(diagnose(self.command.split(), self.variables, seconds=seconds))


class Shared(Inspection):
    """A child process whose report is kept: the next test that would load the same things starts none."""

    _inventories: ClassVar[dict[object, Inventory]] = {}
    _loads: ClassVar[dict[object, Loaded]] = {}

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch)
        self._is_running = False
        folder = Path(launch.app.folder or "") if launch.app is not None else None
        text = (folder / "app.py").read_text() if folder is not None and (folder / "app.py").is_file() else ""
        paths = tuple(path for path in launch.env.get("PYTHONPATH", "").split(os.pathsep) if path != str(folder))
        self._key = (launch.interpreter, launch.flags, launch.server, launch.initialises, text, paths)

    async def __aenter__(self) -> Inspection:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._is_running:
            await super().__aexit__(*error)

    async def _start(self, seconds: float) -> Inventory:
        self._is_running = True
        await super().__aenter__()
        return await super().inventory(seconds)

    async def inventory(self, seconds: float) -> Inventory:
        if self._key not in self._inventories:
            self._inventories[self._key] = await self._start(seconds)
        return self._inventories[self._key]

    async def load(self, exporters: Sequence[tuple[str, str]], disabled: set[str], seconds: float) -> Loaded:
        key = (self._key, frozenset(disabled))
        if key not in self._loads:
            if not self._is_running:
                await self._start(seconds)
            # To make exporters takes long, and once is enough: no test is about one that cannot be made.
            wanted = [] if self._loads else exporters
            self._loads[key] = await super().load(wanted, disabled, seconds)
        return self._loads[key]


def unwell(findings: list[Finding]) -> list[tuple[str, str]]:
    """Check and status of everything that is not as it should be."""
    return [(finding.check, finding.status) for finding in findings if finding.status != "ok"]


def only(findings: list[Finding], check: str) -> Finding:
    """The one finding of a check."""
    (finding,) = [finding for finding in findings if finding.check == check]
    return finding
