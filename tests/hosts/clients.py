"""The clients: which package and version, and what one visit of theirs means to an operator.

Those for node record what they send and get by themselves; programs in Go and Rust are built here, and recorded by a
relay.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from tests.hosts.relay import relayed

SCRIPTS: Final = Path(__file__).parent / "clients"
_PATIENCE: Final = 60
"""Seconds that one process of a client may take."""


_BUILD_WITHIN: Final = 600


class ToolMissing(Exception):
    """There is no node, Go or Rust that could run the client."""


def cache() -> Path:
    """What is installed or built is kept there between runs, outside the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otel-mcp" / "hosts"


@dataclass(frozen=True)
class Package:
    """A package that clients come from, pinned."""

    name: str
    version: str

    @property
    def folder(self) -> Path:
        """Where it is installed, made on first use; outside the repository, kept between runs.

        Raises:
            ToolMissing: it cannot be installed here.
        """
        key = sha256(f"{self.name} {self.version}".encode()).hexdigest()[:12]
        folder = cache() / f"{self.name.rpartition('/')[2]}-{self.version}-{key}"
        npm = shutil.which("npm")
        if npm is None or shutil.which("node") is None:
            raise ToolMissing("node and npm are needed")
        if not (folder / "ready").exists():
            folder.mkdir(parents=True, exist_ok=True)
            options = ("--no-audit", "--no-fund", "--no-package-lock", "--silent")
            subprocess.run([npm, "install", *options, f"{self.name}@{self.version}"], cwd=folder, check=True)
            (folder / "ready").touch()
        # Modules are looked for in the folder of the script that imports them.
        for script in SCRIPTS.glob("*.mjs"):
            shutil.copy(script, folder)
        return folder


@dataclass(frozen=True)
class Program:
    """A client with a folder of source under ``clients/``, pinned there; built on first use."""

    name: str
    version: str
    tool: str
    build: tuple[str, ...]
    """Makes ``program`` in the folder that ``{out}`` stands for."""

    @property
    def executable(self) -> Path:
        """Where it is.

        Raises:
            ToolMissing: its language is not here, or what it is built from.
        """
        source = SCRIPTS / self.name
        files = sorted(path for path in source.rglob("*") if path.is_file())
        key = sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
        folder = cache() / f"{self.name}-{key}"
        executable = folder / "program"
        if not executable.exists():
            tool = shutil.which(self.tool)
            if tool is None:
                raise ToolMissing(f"{self.tool} is needed")
            shutil.copytree(source, folder, dirs_exist_ok=True)
            command = [tool, *(part.format(out=folder) for part in self.build)]
            built = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=_BUILD_WITHIN, check=False
            )
            if built.returncode:
                raise ToolMissing(f"{self.tool} could not build it: {built.stderr[-2000:]}")
            if self.tool == "cargo":
                shutil.move(folder / "target" / "debug" / "host", executable)
                shutil.rmtree(folder / "target")
        return executable


GO: Final = Program("go", "1.8.0", "go", ("build", "-o", "{out}/program", "."))
RUST: Final = Program("rust", "3.11.0", "cargo", ("build", "--quiet"))
SDK_1: Final = Package("@modelcontextprotocol/sdk", "1.32.2")
SDK_1_12: Final = Package("@modelcontextprotocol/sdk", "1.12.3")
SDK_2: Final = Package("@modelcontextprotocol/client", "2.4.0")
INSPECTOR: Final = Package("@modelcontextprotocol/inspector", "2.12.0")


@dataclass(frozen=True)
class Host:
    """A client in one of its ways, and what a visit of it should look like."""

    package: Package | Program
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

    @property
    def says_goodbye(self) -> bool:
        """Whether it ends its session with a DELETE."""
        return self.kind == "http" or isinstance(self.package, Program)

    def prepare(self) -> None:
        """Install or build it, unless it is here.

        Raises:
            ToolMissing: it cannot be run here.
        """
        _ = self.package.executable if isinstance(self.package, Program) else self.package.folder

    def visit(self, url: str, record: Path) -> list[str]:
        """Run it; returns what it printed. `record` gets its exchanges, one JSON text a line.

        Raises:
            RuntimeError: it failed.
            ToolMissing: it cannot be run here.
        """
        if isinstance(self.package, Program):
            with relayed(url, record) as through:
                return [self._run([str(self.package.executable), through, self.kind], record, SCRIPTS)]
        folder = self.package.folder
        start = ["node", "--import", str(folder / "record.mjs"), str(folder / self.script), *self._of(url)]
        return [self._run([*start, *more], record, folder, fails=bool(more)) for more in self.visits]

    def _run(self, command: list[str], record: Path, folder: Path, *, fails: bool = False) -> str:
        found = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "EXCHANGES": str(record), "NO_PROXY": "127.0.0.1"},
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        if found.returncode and not fails:
            raise RuntimeError(f"{self} ended with {found.returncode}: {found.stderr[-2000:]}")
        return found.stdout

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
    Host(GO, "", "http"),
    Host(RUST, "", "http"),
    Host(RUST, "", "auto"),
    Host(SDK_1, "sdk1.mjs", "sse"),
    Host(SDK_1_12, "sdk1.mjs", "sse"),
    Host(SDK_2, "sdk2.mjs", "sse"),
    Host(INSPECTOR, _CLI, "sse", _COMMANDS),
)
