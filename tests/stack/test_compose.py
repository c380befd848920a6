"""docker-compose.yml: valid, pinned, limited, and open to nobody else."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("yaml")

import yaml

from .lane.paths import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
UNCHECKED = {"collector", "jaeger", "ready", "traffic"}
"""The images of the first two have nothing to check themselves with: `ready` does it for them."""
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+([.-][\w.-]+)?")


def problems(compose: dict[str, Any]) -> Iterator[str]:
    services = compose["services"]
    built = {service["image"] for service in services.values() if "build" in service}
    for name, service in services.items():
        if service["image"] not in built and not PINNED.fullmatch(service["image"]):
            yield f"{name}: {service['image']} is not pinned"
        if not service.get("deploy", {}).get("resources", {}).get("limits", {}).get("memory"):
            yield f"{name}: no memory limit"
        if name not in UNCHECKED and "healthcheck" not in service:
            yield f"{name}: no health check"
        yield from _open_doors(name, service)
        yield from _missing(name, service, services)
    grafana = services["grafana"]["environment"]
    if grafana.get("GF_AUTH_ANONYMOUS_ORG_ROLE") != "Viewer":
        yield "grafana: anybody may edit"
    if grafana.get("GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION") != "true":
        yield "grafana: has an admin with the default password"


def _open_doors(name: str, service: dict[str, Any]) -> Iterator[str]:
    for port in service.get("ports") or ():
        if not str(port).startswith("127.0.0.1:"):
            yield f"{name}: {port} is open to the network"
    for key, value in (service.get("environment") or {}).items():
        if re.search("PASSWORD|SECRET|TOKEN", key) and value:
            yield f"{name}: {key} is written down"


def _missing(name: str, service: dict[str, Any], services: dict[str, Any]) -> Iterator[str]:
    for other, wanted in (service.get("depends_on") or {}).items():
        if other not in services:
            yield f"{name}: depends on {other}, which is not there"
        elif wanted["condition"] == "service_healthy" and "healthcheck" not in services[other]:
            yield f"{name}: waits for the health of {other}, which is never checked"
    for volume in service.get("volumes") or ():
        outside = str(volume).split(":")[0]
        if outside.startswith(".") and not (ROOT / outside).exists():
            yield f"{name}: {outside} is not there"


def test_it_keeps_every_rule() -> None:
    assert list(problems(COMPOSE)) == []


MISTAKES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "open port": (lambda s: s["grafana"].update(ports=["3000:3000"]), "3000:3000 is open to the network"),
    "latest": (lambda s: s["jaeger"].update(image="jaegertracing/jaeger:latest"), "is not pinned"),
    "no limit": (lambda s: s["valkey"].pop("deploy"), "valkey: no memory limit"),
    "no check": (lambda s: s["proxy"].pop("healthcheck"), "proxy: no health check"),
    "misspelt dependency": (
        lambda s: s["proxy"].update(depends_on={"servers": {"condition": "service_started"}}),
        "servers, which is not there",
    ),
    "missing file": (lambda s: s["proxy"].update(volumes=["./nginx.conf:/etc/nginx/nginx.conf"]), "is not there"),
    "password": (
        lambda s: s["grafana"]["environment"].update(GF_SECURITY_ADMIN_PASSWORD="admin"),
        "is written down",
    ),
    "default admin": (
        lambda s: s["grafana"]["environment"].pop("GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"),
        "default password",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    spoil, complaint = MISTAKES[mistake]
    compose = copy.deepcopy(COMPOSE)
    spoil(compose["services"])
    assert any(complaint in problem for problem in problems(compose))


def test_compose_itself_takes_it() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker compose on this machine")
    checked = subprocess.run(
        [docker, "compose", "config", "-q"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_the_image_copies_what_is_there() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "examples" / "Dockerfile").read_text(encoding="utf-8"), re.M)
    assert copied
    missing = [source for line in copied for source in line.split() if not (ROOT / source).exists()]
    assert missing == []
