"""What docker-compose.yml must keep to; each rule yields what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from opentelemetry import environment_variables as api_variables
from opentelemetry.sdk import environment_variables as sdk_variables

from otel_mcp.settings import PREFIX, Settings

from .lane import builds
from .lane.paths import ROOT
from .schema import SCHEMA

Compose = dict[str, Any]
FILE: Final = ROOT / "docker-compose.yml"
PORTS: Final = {
    "valkey": {6379},
    "collector": {4317, 4318, 13133},
    "jaeger": {4317, 13133, 16686},
    "loki": {3100},
    "prometheus": {9090},
    "grafana": {3000},
    "server": {8000},
    "proxy": {8080},
}
"""What each service listens on inside."""
PROGRAMS: Final = {
    "valkey/valkey": {"valkey-server", "valkey-cli", "sh", "wget"},
    "prom/prometheus": {"wget"},
    "grafana/grafana": {"wget"},
    "nginxinc/nginx-unprivileged": {"wget"},
    "otel-mcp-example": {"python"},
    "otel/opentelemetry-collector-contrib": set[str](),
    "quay.io/jaegertracing/jaeger": set[str](),
    "grafana/loki": set[str](),
}
"""What is in each image to be run: Alpine and BusyBox have wget, the last three have no shell at all."""
TESTED: Final = {
    "otel/opentelemetry-collector-contrib": builds.BUILDER.removeprefix("v"),
    # Its modules count from 0.300: v0.315.0 is 3.15.0.
    "prom/prometheus": re.sub(r"v0\.3(\d+)\.", r"v3.\1.", builds.PROMETHEUS),
    "grafana/grafana": SCHEMA,
    "grafana/loki": builds.LOKI.removeprefix("v"),
}
"""The versions that the lane builds, and that the dashboards are checked against."""
_STANDARD: Final = {
    name for module in (api_variables, sdk_variables) for name in dir(module) if name.startswith("OTEL_")
}
_OURS: Final = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
_GRAFANAS: Final = {
    *("GF_AUTH_ANONYMOUS_ENABLED", "GF_AUTH_ANONYMOUS_ORG_ROLE", "GF_AUTH_BASIC_ENABLED"),
    *("GF_AUTH_DISABLE_LOGIN_FORM", "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"),
    *("GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH", "GF_ANALYTICS_REPORTING_ENABLED"),
    *("GF_ANALYTICS_CHECK_FOR_UPDATES", "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES"),
}
_PINNED: Final = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+([.-][\w.-]+)?")
_ADDRESS: Final = re.compile(r"\b(?:https?|redis)://([\w.-]+):(\d+)")
_FINISHES: Final = {"ready"}
"""Services that do one thing and end."""


def read() -> Compose:
    """Return the file."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def images_are_pinned_and_tested(compose: Compose) -> Iterator[str]:
    """Every image has a version, and it is the one that the lane runs."""
    services = compose["services"]
    built = {service["image"] for service in services.values() if "build" in service}
    for name, service in services.items():
        image, _, tag = service["image"].partition(":")
        if service["image"] not in built and not _PINNED.fullmatch(service["image"]):
            yield f"{name}: {service['image']} is not pinned"
        if image not in PROGRAMS:
            yield f"{name}: nobody knows what {image} is"
        if tag != TESTED.get(image, tag):
            yield f"{name}: {tag} is not what is tested, which is {TESTED[image]}"
        build = service.get("build")
        if build and not (ROOT / build["context"] / build["dockerfile"]).exists():
            yield f"{name}: there is no {build['dockerfile']}"


def resources_are_bounded(compose: Compose) -> Iterator[str]:
    """Memory, logs and privileges have limits; what ends starts again."""
    for name, service in compose["services"].items():
        limit = service.get("deploy", {}).get("resources", {}).get("limits", {}).get("memory")
        if not limit:
            yield f"{name}: no memory limit"
        elif not re.fullmatch(r"\d+[MG]", str(limit)):
            yield f"{name}: {limit} is no size"
        if name in _FINISHES:
            continue
        if service.get("restart") != "unless-stopped":
            yield f"{name}: stays down when it ends"
        if "no-new-privileges:true" not in service.get("security_opt", ()):
            yield f"{name}: may gain privileges"
        if "max-size" not in service.get("logging", {}).get("options", {}):
            yield f"{name}: its log grows without end"


def health_is_checked(compose: Compose) -> Iterator[str]:
    """Whatever can check itself does, with a program that its image has."""
    for name, service in compose["services"].items():
        programs = PROGRAMS.get(service["image"].partition(":")[0], set[str]())
        check = service.get("healthcheck")
        if check is None:
            if programs and name not in {"ready", "traffic"}:
                yield f"{name}: no health check"
            continue
        kind, program, *_ = check["test"]
        if kind != "CMD" or program not in programs:
            yield f"{name}: its image has no {program}"
        if not {"interval", "timeout", "retries"} <= check.keys():
            yield f"{name}: its health check does not say how often and how long"


def doors_are_closed(compose: Compose) -> Iterator[str]:
    """Loopback only, nothing written down, nobody may edit."""
    for name, service in compose["services"].items():
        for port in service.get("ports") or ():
            host, _, inside = str(port).rpartition(":")
            if not str(port).startswith("127.0.0.1:"):
                yield f"{name}: {port} is open to the network"
            if int(inside) not in PORTS.get(name, set()):
                yield f"{name}: nothing listens on {inside} behind {host}"
        for key, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|TOKEN", key) and value:
                yield f"{name}: {key} is written down"
    grafana = compose["services"]["grafana"]["environment"]
    for key, wanted in (
        ("GF_AUTH_ANONYMOUS_ORG_ROLE", "Viewer"),
        ("GF_AUTH_BASIC_ENABLED", "false"),
        ("GF_AUTH_DISABLE_LOGIN_FORM", "true"),
        ("GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION", "true"),
    ):
        if grafana.get(key) != wanted:
            yield f"grafana: {key} is {grafana.get(key)}: anybody may edit, or log in with the default password"


def references_lead_somewhere(compose: Compose) -> Iterator[str]:
    """Services, volumes, networks and files that are named are there."""
    services = compose["services"]
    for name, service in services.items():
        for other, wanted in (service.get("depends_on") or {}).items():
            if other not in services:
                yield f"{name}: depends on {other}, which is not there"
            elif wanted["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                yield f"{name}: waits for the health of {other}, which is never checked"
            elif (wanted["condition"] == "service_completed_successfully") is not (other in _FINISHES):
                yield f"{name}: waits for {other} to be {wanted['condition']}"
        for network in service.get("networks") or ():
            if network != "default" and network not in compose["networks"]:
                yield f"{name}: there is no network {network}"
        yield from _volume_problems(name, service, compose)
        yield from _address_problems(name, service, services)


def _volume_problems(name: str, service: Compose, compose: Compose) -> Iterator[str]:
    mounts: dict[str, Path] = {}
    for volume in service.get("volumes") or ():
        outside, inside, *mode = str(volume).split(":")
        if outside.startswith("."):
            mounts[inside] = ROOT / outside
            if not (ROOT / outside).exists():
                yield f"{name}: {outside} is not there"
            if mode != ["ro"]:
                yield f"{name}: {outside} can be written to"
        elif outside not in compose["volumes"]:
            yield f"{name}: there is no volume {outside}"
    texts = [*map(str, service.get("command") or ()), *map(str, (service.get("environment") or {}).values())]
    for path in re.findall(r"(/etc/[\w./-]+)", "\n".join(texts)):
        found = [
            outside / path[len(inside) :].lstrip("/") for inside, outside in mounts.items() if path.startswith(inside)
        ]
        if not any(place.exists() for place in found):
            yield f"{name}: nothing is mounted at {path}"


def _address_problems(name: str, service: Compose, services: Compose) -> Iterator[str]:
    text = yaml.safe_dump({key: service.get(key) for key in ("command", "environment", "healthcheck")}, width=10_000)
    for host, port in _ADDRESS.findall(text):
        to = name if host == "127.0.0.1" else host
        if to not in services or int(port) not in PORTS.get(to, set()):
            yield f"{name}: nothing listens on {host}:{port}"


def variables_are_known(compose: Compose) -> Iterator[str]:
    """A misspelt variable is one that nobody reads."""
    known = known_variables()
    for name, service in compose["services"].items():
        yield from (f"{name}: nobody reads {key}" for key in service.get("environment") or {} if key not in known)


def known_variables() -> set[str]:
    """Return every variable that a program of the stack reads."""
    configs = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "collector" / "config").glob("*.yaml"))
    files = [*(ROOT / "grafana" / "provisioning" / "datasources").glob("*.yaml"), ROOT / "grafana" / "loki.yaml"]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files)
    read_by = set(re.findall(r"\$\{env:(\w+)", configs)) | set(re.findall(r"(?<!\$)\$\{(\w+)[}:]", sources))
    return _STANDARD | _OURS | _GRAFANAS | read_by


def the_store_refuses_rather_than_forgets(compose: Compose) -> Iterator[str]:
    """Valkey has a limit of its own, beneath the container's, and evicts nothing."""
    valkey = compose["services"]["valkey"]
    command = [str(part) for part in valkey["command"]]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    limit = valkey.get("deploy", {}).get("resources", {}).get("limits", {}).get("memory", "0M")
    if options.get("--maxmemory-policy") != "noeviction":
        yield "valkey: evicts sessions"
    if not 0 < int(options.get("--maxmemory", "0mb").removesuffix("mb")) < int(limit.removesuffix("M")):
        yield f"valkey: {options.get('--maxmemory')} of {limit}"


def prometheus_takes_what_is_sent(compose: Compose) -> Iterator[str]:
    """Its flags are those that the stack counts on."""
    command = compose["services"]["prometheus"]["command"]
    wanted = {"--web.enable-otlp-receiver", "--enable-feature=exemplar-storage,created-timestamp-zero-ingestion"}
    known = ("--config.file=", "--storage.tsdb.path=", "--storage.tsdb.retention.time=")
    for flag in command:
        if flag not in wanted and not flag.startswith(known):
            yield f"prometheus: {flag} is not known"
    for flag in wanted - set(command):
        yield f"prometheus: no {flag}"


def the_proxy_is_believed(compose: Compose) -> Iterator[str]:
    """Servers trust the network that their proxy is in, and only that; there are two of them."""
    server, proxy = compose["services"]["server"], compose["services"]["proxy"]
    subnet = compose["networks"]["proxied"]["ipam"]["config"][0]["subnet"]
    trusted = server["environment"].get(f"{PREFIX}TRUSTED_PROXIES")
    if trusted != subnet:
        yield f"server: trusts {trusted}, and its proxy is in {subnet}"
    if compose["networks"]["proxied"].get("internal") is not True:
        yield "proxied: reaches out"
    if not all("proxied" in service.get("networks", ()) for service in (server, proxy)):
        yield "the proxy and its servers share no network"
    if server.get("deploy", {}).get("replicas", 1) < 2:
        yield "server: one replica proves nothing"
    others = [name for name, service in compose["services"].items() if "proxied" in (service.get("networks") or ())]
    if sorted(others) != ["proxy", "server"]:
        yield f"{others} are believed, too"


RULES: Final[tuple[Callable[[Compose], Iterator[str]], ...]] = (
    images_are_pinned_and_tested,
    resources_are_bounded,
    health_is_checked,
    doors_are_closed,
    references_lead_somewhere,
    variables_are_known,
    the_store_refuses_rather_than_forgets,
    prometheus_takes_what_is_sent,
    the_proxy_is_believed,
)


def problems(compose: Compose) -> list[str]:
    """Return everything that is wrong with it."""
    return [problem for rule in RULES for problem in rule(compose)]
