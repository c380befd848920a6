"""Environments for ``otel-mcp doctor``: a healthy one with real servers behind it, of which a test breaks one thing."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

from otel_mcp.cli.doctor.diagnosis import Diagnosis, diagnose
from otel_mcp.cli.doctor.finding import Finding

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

    def diagnose(self, seconds: float = 60) -> Diagnosis:
        """Ask the doctor."""
        return asyncio.run(diagnose(self.command.split(), self.variables, seconds=seconds))


def unwell(findings: list[Finding]) -> list[tuple[str, str]]:
    """Check and status of everything that is not as it should be."""
    return [(finding.check, finding.status) for finding in findings if finding.status != "ok"]


def only(findings: list[Finding], check: str) -> Finding:
    """The one finding of a check."""
    (finding,) = [finding for finding in findings if finding.check == check]
    return finding
