"""The programs of the lane, built once and kept in the cache.

Each is built with Go from the modules of its own project, in the versions below; checksums are
verified as Go does always. What a build depends on is part of its folder's name, so a change of
version or manifest builds it again. Where modules come from is the machine's business.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import yaml

from .paths import CACHE, ROOT

BUILDER: Final = "v0.161.0"
PROMETHEUS: Final = "v0.315.0"
"""Prometheus 3.15, as in docker-compose.yml: its modules count from 0.300."""
JAEGER: Final = "v1.76.0"
"""The same commit as v2.13.0, the newest v2 that Go can name: later ones have no module version."""
LOKI: Final = "v3.7.8"
COMPOSE: Final = "v2.16.2"
"""What `docker compose` reads its files with."""
KUBERNETES: Final = "v1.37.2"
"""Whose API the manifests of collector/kubernetes are held against."""
KUSTOMIZE: Final = "v0.21.1"
"""What that release's `kubectl apply -k` builds with."""
OPERATOR: Final = "v0.95.2"
"""The Prometheus Operator whose kinds are among them."""
TOO_LONG: Final = 15 * 60
"""Seconds that one program may take."""
NOT_WORTH_IT: Final = 6 * 60
"""Seconds that Loki may take, on which one panel rests; what was compiled stays in Go's cache for the next try."""
BROKEN: Final = frozenset(os.environ.get("OTEL_MCP_LANE_BROKEN", "").split())
"""Programs whose build shall fail, to see what happens then."""


class NotBuilt(Exception):
    """A program is not to be had."""


@dataclass(frozen=True)
class Go:
    """The Go of this machine, in a folder, until a deadline."""

    folder: Path
    limit: float
    """Seconds that it has in all."""
    began: float
    """Seconds of `time.monotonic`."""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def within(self, folder: Path) -> Go:
        """Return the same in another folder."""
        return replace(self, folder=folder)

    def __call__(self, *arguments: str) -> str:
        """Run it.

        Raises:
            NotBuilt: There is none, it fails, or it is too late.
        """
        go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
        if go is None:
            raise NotBuilt("there is no go on this machine")
        # Others work on this machine too.
        own = {"GOFLAGS": "-mod=mod -buildvcs=false", "GOMAXPROCS": "2", "GOWORK": "off"}
        command = ["nice", "-n", "10", go, *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env={**os.environ, **own, **self.environment},
                capture_output=True,
                text=True,
                timeout=max(0.0, self.began + self.limit - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            raise NotBuilt(f"go {arguments[0]}: {self.limit // 60:.0f} minutes were not enough") from late
        if done.returncode:
            raise NotBuilt(f"go {' '.join(arguments)}: {(done.stderr or done.stdout).strip()[-1500:]}")
        return done.stdout


@dataclass(frozen=True)
class Program:
    """A program, and how it is made into the folder of a Go."""

    name: str
    version: str
    make: Callable[[Go], None]
    limit: float = TOO_LONG
    """Seconds that its build may take."""

    @property
    def path(self) -> Path:
        """Where it is once it is built."""
        return CACHE / f"{self.name}-{self.version}" / self.name

    def built(self) -> Path:
        """Return the program, built if it was not there.

        Raises:
            NotBuilt: It cannot be built here, or not in time.
        """
        if self.path.exists() and self.name not in BROKEN:
            return self.path
        print(f"building {self.name} {self.version} ...", flush=True)
        began = time.monotonic()
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="build-") as folder:
            work = Path(folder)
            # Without a module there is no build: as real as a failure gets.
            spoilt = {"GOPROXY": "off", "GOMODCACHE": f"{work}/none"} if self.name in BROKEN else {}
            self.make(Go(work, self.limit, began, spoilt))
            self.path.parent.mkdir(exist_ok=True)
            # Last, and in one step: a build that was interrupted leaves nothing half done.
            os.replace(work / self.name, self.path)
        print(f"built {self.name} in {time.monotonic() - began:.0f} s", flush=True)
        return self.path


def collector() -> Program:
    """The Collector of `collector/builder.yaml`."""
    manifest = (ROOT / "collector" / "builder.yaml").read_text(encoding="utf-8")
    wanted = json.dumps(yaml.safe_load(manifest), sort_keys=True)
    digest = hashlib.sha256(f"{BUILDER}{wanted}".encode()).hexdigest()[:12]

    def make(go: Go) -> None:
        (go.folder / "builder.yaml").write_text(manifest, encoding="utf-8")
        builder = f"go.opentelemetry.io/collector/cmd/builder@{BUILDER}"
        go("run", builder, "--config", "builder.yaml", "--skip-compilation")
        sources = go.within(go.folder / "build")
        sources("build", "-trimpath", "-ldflags=-s -w", "-o", str(go.folder / "otelcol"))

    return Program("otelcol", digest, make)


def prometheus() -> Program:
    """Prometheus, without the service discoveries of every cloud."""
    return Program("prometheus", PROMETHEUS, _prometheus("prometheus"))


def promtool() -> Program:
    """What checks and tests Prometheus's rules."""
    return Program("promtool", PROMETHEUS, _prometheus("promtool"))


def jaeger() -> Program:
    """Jaeger v2."""
    return Program("jaeger", JAEGER, _as_in_its_repository("jaeger", "github.com/jaegertracing/jaeger", JAEGER))


def loki() -> Program:
    """Loki 3."""
    return Program("loki", LOKI, _as_in_its_repository("loki", "github.com/grafana/loki/v3", LOKI), NOT_WORTH_IT)


def _as_in_its_repository(name: str, module: str, version: str) -> Callable[[Go], None]:
    """Make a program with the replacements and checksums of its own module, of which Go takes no account elsewhere."""

    def make(go: Go) -> None:
        found = json.loads(go("mod", "download", "-json", f"{module}@{version}"))
        source = Path(found["Dir"])
        go("mod", "init", "tools")
        for replacement in _replacements(go, source):
            old, new = replacement["Old"], replacement["New"]
            # A folder of the repository is no part of its module; that one is published as well.
            if "Version" in new:
                go("mod", "edit", f"-replace={old['Path']}={new['Path']}@{new['Version']}")
        shutil.copyfile(source / "go.sum", go.folder / "go.sum")
        go("get", f"{module}/cmd/{name}@{version}")
        go("build", "-trimpath", "-ldflags=-s -w", "-o", name, f"{module}/cmd/{name}")

    return make


def compose() -> Program:
    """The reader and checker of compose files: `docker compose config` without an engine."""
    source = Path(__file__).with_name("compose.go")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]

    def make(go: Go) -> None:
        shutil.copyfile(source, go.folder / "main.go")
        go("mod", "init", "tools")
        go("get", f"github.com/compose-spec/compose-go/v2@{COMPOSE}")
        go("mod", "tidy")
        go("build", "-o", "compose", ".")

    return Program("compose", f"{COMPOSE}-{digest}", make)


def manifests() -> Program:
    """What builds and checks collector/kubernetes: kustomize, and the API server's own validation."""
    source = Path(__file__).with_name("manifests.go")
    digest = hashlib.sha256(source.read_bytes() + f"{KUSTOMIZE}{OPERATOR}".encode()).hexdigest()[:8]

    def make(go: Go) -> None:
        shutil.copyfile(source, go.folder / "main.go")
        found = json.loads(go("mod", "download", "-json", f"k8s.io/kubernetes@{KUBERNETES}"))
        go("mod", "init", "tools")
        # Its libraries are folders of its repository, and modules of the same release.
        release = KUBERNETES.replace("v1.", "v0.")
        libraries = [replacement["Old"]["Path"] for replacement in _replacements(go, Path(found["Dir"]))]
        go("mod", "edit", *(f"-replace={path}={path}@{release}" for path in libraries))
        operator = "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring"
        go("get", f"k8s.io/kubernetes@{KUBERNETES}", f"sigs.k8s.io/kustomize/api@{KUSTOMIZE}", f"{operator}@{OPERATOR}")
        go("mod", "tidy")
        go("build", "-ldflags=-s -w", "-o", "manifests", ".")

    return Program("manifests", f"{KUBERNETES}-{digest}", make)


def _replacements(go: Go, source: Path) -> list[dict[str, Any]]:
    return json.loads(go.within(source)("mod", "edit", "-json")).get("Replace") or []


def _prometheus(name: str) -> Callable[[Go], None]:
    def make(go: Go) -> None:
        package = f"github.com/prometheus/prometheus/cmd/{name}"
        tags = "-tags=remove_all_sd"
        go("mod", "init", "tools")
        go("get", tags, f"{package}@{PROMETHEUS}")
        go("build", tags, "-o", name, package)

    return make


def main() -> int:
    """Build everything but Loki, which only the lane needs: `python -m tests.stack.lane.builds`."""
    programs = (collector(), prometheus(), promtool(), jaeger(), compose(), manifests())
    built = [_told(program) for program in programs]
    return 0 if all(built) else 1


def _told(program: Program) -> bool:
    try:
        print(program.built())
    except NotBuilt as error:
        print(f"NOT BUILT: {program.name}: {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
