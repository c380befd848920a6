"""Read from the environment, as the SDK does, which exporters it makes and where they send."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit

from otel_mcp.cli.doctor.inspection import Inventory, Loaded
from otel_mcp.cli.doctor.report import INSTALL, Finding, export, fail, merged, ok, skip, warn

Protocol = Literal["grpc", "http"]
Env = Mapping[str, str]
SIGNALS: Final = ("traces", "metrics", "logs")
COMMON: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_STOPS: Final = "so nothing is instrumented"
_BY_PROTOCOL: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_BUILT_IN: Final = {"prometheus": "opentelemetry-exporter-prometheus", "zipkin": "opentelemetry-exporter-zipkin"}
_NAMED: Final = (
    ("OTEL_PROPAGATORS", "propagator", fail),
    ("OTEL_PYTHON_ID_GENERATOR", "id_generator", fail),
    ("OTEL_PYTHON_CONFIGURATOR", "configurator", fail),
    ("OTEL_PYTHON_DISTRO", "distro", warn),
    ("OTEL_TRACES_SAMPLER", "traces_sampler", warn),
)
"""Variables that name entry points; a wrong name in the first ones stops everything."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where one signal goes over OTLP."""

    signal: str
    protocol: Protocol
    url: str
    variable: str
    """The variable that sets the URL."""
    protocol_variable: str
    secure: bool
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None

    @property
    def place(self) -> str:
        """The URL without user, password and query."""
        parts = urlsplit(self.url if "://" in self.url else f"//{self.url}")
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else f"{host}{parts.path}"

    @property
    def base(self) -> str:
        """The place as its variable sets it: without the path of the signal in the common variable."""
        is_common = self.protocol == "http" and self.variable == COMMON
        return self.place.removesuffix(f"/v1/{self.signal}") if is_common else self.place


@dataclass(slots=True)
class Exporting:
    """The exporters that an environment configures."""

    findings: list[Finding] = field(default_factory=list[Finding])
    targets: list[Target] = field(default_factory=list[Target])
    wanted: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Group and name of the OTLP exporters to construct."""


def read(env: Env, inventory: Inventory) -> Exporting:
    """Find out which exporters the SDK would make, and their problems."""
    result = Exporting()
    if env.get("OTEL_CONFIG_FILE") and "opentelemetry-configuration" in inventory.distributions:
        result.findings.append(skip("OTEL_CONFIG_FILE sets the exporters; that file was not read"))
    elif env.get("OTEL_CONFIG_FILE"):
        found = "OTEL_CONFIG_FILE is set, but the package that reads it is missing: nothing is instrumented"
        result.findings.append(fail(found, "python -m pip install opentelemetry-configuration"))
    elif not inventory.names("configurator"):
        result.findings.append(fail("nothing configures the SDK: opentelemetry-distro is missing", INSTALL))
    else:
        names = {signal: _names(env, signal, inventory) for signal in SIGNALS}
        wrong = [
            (signal, finding)
            for signal in SIGNALS
            for finding in _signal(result, env, inventory, signal, names[signal])
        ]
        found = ", ".join(f"{signal}: {'+'.join(names[signal]) or 'none'}" for signal in SIGNALS)
        result.findings = [*merged(wrong), *_settings(env, inventory, names)] or [ok(found)]
    return result


def _names(env: Env, signal: str, inventory: Inventory) -> list[str]:
    given = env.get(f"OTEL_{signal.upper()}_EXPORTER")
    if given is None:
        # The default of opentelemetry-distro and distros made after it.
        distros, chosen = inventory.names("distro"), env.get("OTEL_PYTHON_DISTRO")
        given = "otlp" if (chosen in distros if chosen else distros) else ""
    return [] if given.strip().lower() == "none" else _listed(given)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _of_signal(env: Env, signal: str, name: str) -> tuple[str, str | None]:
    """Return the name and value of the variable of one signal if it is set, else of the common one."""
    own, common = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"
    return (own, env[own]) if env.get(own) else (common, env.get(common))


def _signal(result: Exporting, env: Env, inventory: Inventory, signal: str, names: list[str]) -> Iterator[Finding]:
    """Add the exporters of one signal to `result`; report those that cannot be made."""
    installed = inventory.names(f"{signal}_exporter")
    for name in names:
        variable, given = _of_signal(env, signal, "PROTOCOL")
        protocol = (given or "").strip() or "grpc"
        exporter = _BY_PROTOCOL.get(protocol) if name == "otlp" else name
        if exporter is None:
            yield fail(f"{variable} names a protocol that Python lacks", export(variable, "http/protobuf"))
            continue
        is_otlp = exporter in _BY_PROTOCOL.values()
        other = next((value for value, made in _BY_PROTOCOL.items() if made in installed), None)
        choice = f"OTEL_{signal.upper()}_EXPORTER"
        if exporter in installed:
            if is_otlp:
                result.wanted.append((f"opentelemetry_{signal}_exporter", exporter))
                kind: Protocol = "grpc" if exporter.endswith("grpc") else "http"
                result.targets.append(_target(env, signal, kind, variable if name == "otlp" else choice))
        elif name == "otlp" and other is not None:
            yield fail(f"the exporter for {protocol} is missing, {_STOPS}", export(variable, other))
        elif is_otlp or name in _BUILT_IN:
            mend = INSTALL if is_otlp else f"python -m pip install {_BUILT_IN[name]}"
            yield fail(f"the package of the exporter {name} is missing, {_STOPS}", mend)
        else:
            yield fail(f"{choice} names an exporter that is not installed, {_STOPS}", export(choice, "otlp"))


def _settings(env: Env, inventory: Inventory, names: Mapping[str, list[str]]) -> Iterator[Finding]:
    """Check for signals without exporters, unknown names, samplers and malformed headers."""
    off = [signal for signal in ("traces", "metrics") if not names[signal]]
    if len(off) == 2:
        mend = "export OTEL_TRACES_EXPORTER=otlp OTEL_METRICS_EXPORTER=otlp"
        yield fail("neither traces nor metrics have an exporter", mend)
    elif off:
        yield warn(f"{off[0]} have no exporter", export(f"OTEL_{off[0].upper()}_EXPORTER", "otlp"))
    if env.get("OTEL_PYTHON_MCP_AUDIT", "").strip().lower() == "events" and not names["logs"]:
        yield warn("audit records are on, but logs have no exporter", export("OTEL_LOGS_EXPORTER", "otlp"))
    for variable, group, report in _NAMED:
        if any(
            name.lower() != "none" and name not in inventory.names(group) for name in _listed(env.get(variable, ""))
        ):
            yield report(f"{variable} names something that is not installed", f"unset {variable}")
    if _drops_all(env):
        yield warn("OTEL_TRACES_SAMPLER drops every trace that begins here", "unset OTEL_TRACES_SAMPLER")
    for name in ("", *(f"{signal.upper()}_" for signal in SIGNALS)):
        variable = f"OTEL_EXPORTER_OTLP_{name}HEADERS"
        # The exporters ignore malformed parts, such as a token without a name.
        if len(_listed(env.get(variable, ""))) > len(_headers(env.get(variable))):
            mend = f"export {variable}=NAME=VALUE,NAME=VALUE"
            yield fail(f"{variable} has a part that is not NAME=VALUE, which exporters ignore", mend)


def _drops_all(env: Env) -> bool:
    sampler = env.get("OTEL_TRACES_SAMPLER", "")
    if not sampler.endswith("traceidratio"):
        return sampler in {"always_off", "parentbased_always_off"}
    try:
        return float(env.get("OTEL_TRACES_SAMPLER_ARG", "1")) <= 0
    except ValueError:
        return False


def _target(env: Env, signal: str, protocol: Protocol, protocol_variable: str) -> Target:
    variable, url = _of_signal(env, signal, "ENDPOINT")
    if protocol == "grpc":
        url = url or "http://localhost:4317"
        insecure = _of_signal(env, signal, "INSECURE")[1]
        scheme = urlsplit(url).scheme
        secure = scheme == "https" or (scheme != "http" if insecure is None else insecure.lower() != "true")
    else:
        url = url or "http://localhost:4318"
        url = f"{url.removesuffix('/')}/v1/{signal}" if variable == COMMON else url
        secure = urlsplit(url).scheme == "https"
    files = [_of_signal(env, signal, name)[1] for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")]
    headers = _headers(_of_signal(env, signal, "HEADERS")[1])
    return Target(signal, protocol, url, variable, protocol_variable, secure, headers, *files)


def _headers(text: str | None) -> dict[str, str]:
    from opentelemetry.util.re import parse_env_headers

    return dict(parse_env_headers(text, liberal=True)) if text else {}


def constructed(loaded: Loaded) -> Iterator[Finding]:
    """Report an exporter that raises for its settings: then nothing is instrumented."""
    advice = "check OTEL_EXPORTER_OTLP_COMPRESSION, _TIMEOUT, _CERTIFICATE"
    for facts in loaded.exporters[:1]:
        yield fail(f"{facts['exporter']} does not accept its settings ({facts['error']}): {advice}")
