"""The clients: which package and version, and what one visit of theirs means to an operator."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

SCRIPTS: Final = Path(__file__).parent / "clients"
_PATIENCE: Final = 60
"""Seconds that one process of a client may take."""


class NodeMissing(Exception):
    """There is no node or npm that could run the clients."""


@dataclass(frozen=True)
class Package:
    """A package that clients come from, pinned."""

    name: str
    version: str

    @property
    def folder(self) -> Path:
        """Where it is installed, made on first use; outside the repository, kept between runs.

        Raises:
            NodeMissing: it cannot be installed here.
        """
        key = sha256(f"{self.name} {self.version}".encode()).hexdigest()[:12]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otel-mcp" / "hosts"
        folder = cache / f"{self.name.rpartition('/')[2]}-{self.version}-{key}"
        if not (folder / "ready").exists():
            npm = shutil.which("npm")
            if npm is None or shutil.which("node") is None:
                raise NodeMissing("node and npm are needed")
            folder.mkdir(parents=True, exist_ok=True)
            options = ("--no-audit", "--no-fund", "--no-package-lock", "--silent")
            subprocess.run([npm, "install", *options, f"{self.name}@{self.version}"], cwd=folder, check=True)
            (folder / "ready").touch()
        # Modules are looked for beside the script that imports them.
        for script in SCRIPTS.glob("*.mjs"):
            shutil.copy(script, folder)
        return folder


SDK_1: Final = Package("@modelcontextprotocol/sdk", "1.32.2")
SDK_1_12: Final = Package("@modelcontextprotocol/sdk", "1.12.3")
SDK_2: Final = Package("@modelcontextprotocol/client", "2.4.0")
INSPECTOR: Final = Package("@modelcontextprotocol/inspector", "2.12.0")


@dataclass(frozen=True)
class Host:
    """A client in one of its ways, and what a visit of it should look like."""

    package: Package
    script: str
    kind: str
    """``sse`` = the transport of 2024-11-05; else how it agrees on a revision."""
    visits: tuple[tuple[str, ...], ...] = ((),)
    """Arguments of each process; most need only one."""

    def __str__(self) -> str:
        return f"{self.package.name.rpartition('/')[2]} {self.package.version} {self.kind}"

    @property
    def over_sse(self) -> bool:
        return self.kind == "sse"

    def visit(self, url: str, record: Path) -> list[str]:
        """Run it; returns what it printed. `record` gets its exchanges, one JSON text a line.

        Raises:
            RuntimeError: it failed.
        """
        folder = self.package.folder
        printed: list[str] = []
        for arguments in self.visits:
            command = ["node", "--import", str(folder / "record.mjs"), str(folder / self.script), *self._of(url)]
            found = subprocess.run(
                [*command, *arguments],
                cwd=folder,
                env={**os.environ, "EXCHANGES": str(record), "NO_PROXY": "127.0.0.1"},
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
                check=False,
            )
            if found.returncode and not arguments:
                raise RuntimeError(f"{self} ended with {found.returncode}: {found.stderr[-2000:]}")
            printed.append(found.stdout)
        return printed

    def _of(self, url: str) -> list[str]:
        if self.package is not INSPECTOR:
            return [url, self.kind]
        transport = ["--transport", "sse"] if self.over_sse else ["--transport", "http", "--protocol-era", self.kind]
        return ["--cli", "--server-url", url, *transport]


_CLI: Final = "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
_COMMANDS: Final = (
    ("--method", "tools/list"),
    ("--method", "tools/call", "--tool-name", "add", "--tool-arg", "a=1", "b=2"),
    ("--method", "tools/call", "--tool-name", "fail"),
)

HOSTS: Final = (
    Host(SDK_1, "sdk1.mjs", "http"),
    Host(SDK_1_12, "sdk1.mjs", "http"),
    Host(SDK_2, "sdk2.mjs", "legacy"),
    Host(SDK_2, "sdk2.mjs", "auto"),
    Host(SDK_2, "sdk2.mjs", "modern"),
    Host(INSPECTOR, _CLI, "legacy", _COMMANDS),
    Host(INSPECTOR, _CLI, "auto", _COMMANDS),
    Host(SDK_1, "sdk1.mjs", "sse"),
    Host(SDK_1_12, "sdk1.mjs", "sse"),
    Host(SDK_2, "sdk2.mjs", "sse"),
    Host(INSPECTOR, _CLI, "sse", _COMMANDS),
)
