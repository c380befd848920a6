"""The suite: which versions, how they are installed and run, and what they found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.hosts.clients import Package, ToolMissing

STABLE: Final = Package("@modelcontextprotocol/conformance", "0.1.16")
NEXT: Final = Package("@modelcontextprotocol/conformance", "0.2.0-alpha.12")
NODE: Final = Package("node", "22.23.3")
"""Brings a node of its own where that of the machine is older; the suite needs 22."""
_OLDEST_NODE: Final = 22
_PATIENCE: Final = 300
_IDS: Final = re.compile(r"om1\.[\w.-]+|[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FOLDER: Final = re.compile(r"server-(.+)-\d{4}-\d\d-\d\dT[\d-]+Z")


@dataclass(frozen=True)
class Run:
    """One call of the suite."""

    package: Package
    selection: tuple[str, str]
    """What of it is run."""

    def __str__(self) -> str:
        return f"{self.package.version} {self.selection[1]}"


RUNS: Final = (
    Run(STABLE, ("--suite", "all")),
    Run(NEXT, ("--requirements", "2025-11-25")),
    Run(NEXT, ("--requirements", "2026-07-28")),
)


@dataclass(frozen=True)
class Check:
    """What one check of a scenario found, without what changes from run to run."""

    scenario: str
    check: str
    status: str
    reason: str

    def __str__(self) -> str:
        return f"{self.scenario} {self.check}: {self.status} {self.reason}".rstrip()


def run(what: Run, url: str) -> Counter[Check]:
    """Run the suite against a server.

    Raises:
        ToolMissing: it cannot be installed here.
        RuntimeError: it found nothing.
    """
    script = what.package.folder / "node_modules" / what.package.name / "dist" / "index.js"
    with TemporaryDirectory() as results:
        ended = subprocess.run(
            [_node(), str(script), "server", "--url", url, *what.selection, "--output-dir", results],
            cwd=results,
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        # It ends with 1 where any check has failed: that says nothing about us.
        found = Counter(check for folder in Path(results).iterdir() for check in _read(folder))
    if not found:
        # Its code is one long line, which an error of node quotes.
        raise RuntimeError(f"{what}: no results; {ended.stderr[-300:]}")
    return found


def _read(folder: Path) -> list[Check]:
    named = _FOLDER.fullmatch(folder.name)
    if named is None:
        return []
    checks = json.loads((folder / "checks.json").read_text())
    return [
        Check(named[1], check["id"], check["status"], _IDS.sub("<id>", check.get("errorMessage") or ""))
        for check in checks
    ]


def _node() -> str:
    found = shutil.which("node")
    if found is None:
        raise ToolMissing("node and npm are needed")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) >= _OLDEST_NODE:
        return found
    return str(NODE.folder / "node_modules" / ".bin" / "node")
