"""The programs of the lane, built once and kept in the cache.

Each is built with Go from the modules of its own project, in the versions below; checksums are
verified as Go does always. What a build depends on is part of its folder's name, so a change of
version or manifest builds anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .paths import CACHE, ROOT

BUILDER: Final = "v0.161.0"
PROMETHEUS: Final = "v0.316.0"
"""Prometheus 3.16: its modules count from 0.300."""
JAEGER: Final = "v1.76.0"
"""The same commit as v2.13.0, the newest v2 that Go can name: later ones have no module version."""
TOO_LONG: Final = 15 * 60


class NotBuilt(Exception):
    """A program is not to be had."""


@dataclass(frozen=True)
class Program:
    """A program, and how it is made into a folder."""

    name: str
    version: str
    make: Callable[[Path], None]

    @property
    def path(self) -> Path:
        """Where it is once it is built."""
        return CACHE / f"{self.name}-{self.version}" / self.name

    def built(self) -> Path:
        """Return the program, built if it was not there.

        Raises:
            NotBuilt: It cannot be built here, or not in time.
        """
        if self.path.exists():
            return self.path
        print(f"building {self.name} {self.version} ...", flush=True)
        began = time.monotonic()
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="build-") as folder:
            work = Path(folder)
            self.make(work)
            self.path.parent.mkdir(exist_ok=True)
            # Last, and in one step: a build that was interrupted leaves nothing half done.
            os.replace(work / self.name, self.path)
        print(f"built {self.name} in {time.monotonic() - began:.0f} s", flush=True)
        return self.path


def collector() -> Program:
    """The Collector of `collector/builder.yaml`."""
    manifest = (ROOT / "collector" / "builder.yaml").read_text(encoding="utf-8")
    digest = hashlib.sha256(f"{BUILDER}{manifest}".encode()).hexdigest()[:12]

    def make(work: Path) -> None:
        (work / "builder.yaml").write_text(manifest, encoding="utf-8")
        builder = f"go.opentelemetry.io/collector/cmd/builder@{BUILDER}"
        _go(work, "run", builder, "--config", "builder.yaml", "--skip-compilation")
        sources = work / "build"
        _go(sources, "build", "-trimpath", "-ldflags=-s -w", "-o", str(work / "otelcol"))

    return Program("otelcol", digest, make)


def prometheus() -> Program:
    """Prometheus, without the service discoveries of every cloud."""
    return Program("prometheus", PROMETHEUS, _prometheus("prometheus"))


def promtool() -> Program:
    """What checks and tests Prometheus's rules."""
    return Program("promtool", PROMETHEUS, _prometheus("promtool"))


def jaeger() -> Program:
    """Jaeger v2."""

    def make(work: Path) -> None:
        module = "github.com/jaegertracing/jaeger"
        found = json.loads(_go(work, "mod", "download", "-json", f"{module}@{JAEGER}"))
        source = Path(found["Dir"])
        # Its own replacements and checksums, as if it were built in its own repository.
        _go(work, "mod", "init", "tools")
        wanted = json.loads(_go(source, "mod", "edit", "-json"))
        for replacement in wanted.get("Replace") or ():
            old, new = replacement["Old"], replacement["New"]
            _go(work, "mod", "edit", f"-replace={old['Path']}={new['Path']}@{new['Version']}")
        shutil.copyfile(source / "go.sum", work / "go.sum")
        _go(work, "get", f"{module}/cmd/jaeger@{JAEGER}")
        _go(work, "build", "-o", "jaeger", f"{module}/cmd/jaeger")

    return Program("jaeger", JAEGER, make)


def _prometheus(name: str) -> Callable[[Path], None]:
    def make(work: Path) -> None:
        package = f"github.com/prometheus/prometheus/cmd/{name}"
        tags = "-tags=remove_all_sd"
        _go(work, "mod", "init", "tools")
        _go(work, "get", tags, f"{package}@{PROMETHEUS}")
        _go(work, "build", tags, "-o", name, package)

    return make


def _go(folder: Path, *arguments: str) -> str:
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
    if go is None:
        raise NotBuilt("there is no go on this machine")
    # Others work on this machine too.
    environment = os.environ | {"GOFLAGS": "-mod=mod -buildvcs=false", "GOMAXPROCS": "2", "GOWORK": "off"}
    command = ["nice", "-n", "10", go, *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TOO_LONG, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise NotBuilt(f"go {arguments[0]} took more than {TOO_LONG // 60} minutes") from late
    if done.returncode:
        raise NotBuilt(f"go {' '.join(arguments)}: {done.stderr.strip()[-1500:]}")
    return done.stdout


def main() -> int:
    """Build everything; part of a cold CI run."""
    try:
        for program in (collector(), prometheus(), promtool(), jaeger()):
            print(program.built())
    except NotBuilt as error:
        print(f"NOT BUILT: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
