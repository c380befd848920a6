"""Where telemetry is to go, read from the environment as the SDK reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit

from otel_mcp.cli.doctor.finding import Finding, export, fail, merged, ok, skip, warn
from otel_mcp.cli.doctor.inspection import Inventory, Loaded

Protocol = Literal["grpc", "http"]

SIGNALS: Final = ("traces", "metrics", "logs")
INSTALL: Final = "python -m pip install 'otel-mcp-sessions[otlp]'"
_STOPS: Final = "so nothing at all is instrumented"
_BY_PROTOCOL: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_BUILT_IN: Final = {"prometheus": "opentelemetry-exporter-prometheus", "zipkin": "opentelemetry-exporter-zipkin"}
_NAMED: Final = (
    ("OTEL_PROPAGATORS", "opentelemetry_propagator", True),
    ("OTEL_PYTHON_ID_GENERATOR", "opentelemetry_id_generator", True),
    ("OTEL_PYTHON_CONFIGURATOR", "opentelemetry_configurator", True),
    ("OTEL_PYTHON_DISTRO", "opentelemetry_distro", False),
    ("OTEL_TRACES_SAMPLER", "opentelemetry_traces_sampler", False),
)
"""Variables that name entry points, and whether a wrong name stops everything."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where one signal goes over OTLP."""

    signal: str
    protocol: Protocol
    url: str
    variable: str
    """Which variable says so, or should."""
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
        """The place as its variable holds it: the common one is the same for all signals."""
        if self.protocol == "http" and self.variable == "OTEL_EXPORTER_OTLP_ENDPOINT":
            return self.place.removesuffix(f"/v1/{self.signal}")
        return self.place


@dataclass(slots=True)
class Exporting:
    """What the environment says about exporters."""

    findings: list[Finding] = field(default_factory=list[Finding])
    targets: list[Target] = field(default_factory=list[Target])
    wanted: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Group and name of the OTLP exporters to construct."""


def read(env: Mapping[str, str], inventory: Inventory) -> Exporting:
    """Find out which exporters the SDK would make, and what is wrong with them."""
    result = Exporting()
    if env.get("OTEL_CONFIG_FILE"):
        result.findings.append(_config_file(inventory))
        return result
    if not inventory.names("opentelemetry_configurator"):
        result.findings.append(
            fail("exporters", "nothing configures the SDK: opentelemetry-distro is missing", INSTALL)
        )
        return result
    names = {signal: _names(env, signal, inventory) for signal in SIGNALS}
    wrong: list[tuple[str, Finding]] = []
    for signal in SIGNALS:
        wrong += [(signal, finding) for finding in _signal(result, env, inventory, signal, names[signal])]
    result.findings += merged(wrong)
    result.findings += _switched_off(names)
    result.findings += _named(env, inventory) + _sampling(env) + _not_headers(env)
    if not result.findings:
        said = ", ".join(f"{signal}: {'+'.join(names[signal]) or 'none'}" for signal in SIGNALS)
        result.findings.append(ok("exporters", said))
    return result


def _config_file(inventory: Inventory) -> Finding:
    if "opentelemetry-configuration" not in inventory.distributions:
        return fail(
            "exporters",
            "OTEL_CONFIG_FILE is set, but the package that reads it is missing: nothing is instrumented",
            "python -m pip install opentelemetry-configuration",
        )
    return skip("exporters", "OTEL_CONFIG_FILE says where telemetry goes; that file was not read")


def _variable(signal: str) -> str:
    return f"OTEL_{signal.upper()}_EXPORTER"


def _names(env: Mapping[str, str], signal: str, inventory: Inventory) -> list[str]:
    said = env.get(_variable(signal))
    if said is None:
        # What opentelemetry-distro, and those made after it, put there.
        distros, chosen = inventory.names("opentelemetry_distro"), env.get("OTEL_PYTHON_DISTRO")
        said = "otlp" if (chosen in distros if chosen else distros) else ""
    if said.strip().lower() == "none":
        return []
    return [name.strip() for name in said.split(",") if name.strip()]


def _protocol(env: Mapping[str, str], signal: str) -> tuple[str, str]:
    """The variable that names the protocol, and what it says."""
    own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
    if env.get(own):
        return own, env[own].strip()
    return "OTEL_EXPORTER_OTLP_PROTOCOL", env.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip() or "grpc"


def _signal(
    result: Exporting, env: Mapping[str, str], inventory: Inventory, signal: str, names: list[str]
) -> Iterator[Finding]:
    """Take up the exporters of one signal, and report those that cannot be made."""
    installed = inventory.names(f"opentelemetry_{signal}_exporter")
    for name in names:
        variable, protocol = _protocol(env, signal)
        exporter = name
        if name == "otlp":
            if protocol not in _BY_PROTOCOL:
                yield fail(
                    "exporters", f"{variable} names a protocol that Python has not", export(variable, "http/protobuf")
                )
                continue
            exporter = _BY_PROTOCOL[protocol]
        elif name in _BY_PROTOCOL.values():
            variable = _variable(signal)
        if exporter in installed:
            if exporter in _BY_PROTOCOL.values():
                result.wanted.append((f"opentelemetry_{signal}_exporter", exporter))
                result.targets.append(_target(env, signal, "grpc" if exporter.endswith("grpc") else "http", variable))
            continue
        other = next((value for value, made in _BY_PROTOCOL.items() if made in installed), None)
        if name == "otlp" and other is not None:
            yield fail("exporters", f"the exporter for {protocol} is missing, {_STOPS}", export(variable, other))
        else:
            yield _unknown(signal, name, exporter)


def _unknown(signal: str, name: str, exporter: str) -> Finding:
    if exporter in _BY_PROTOCOL.values():
        return fail("exporters", f"the package of the exporter {name} is missing, {_STOPS}", INSTALL)
    if package := _BUILT_IN.get(name):
        mend = f"python -m pip install {package}"
        return fail("exporters", f"the package of the exporter {name} is missing, {_STOPS}", mend)
    mend = export(_variable(signal), "otlp")
    return fail("exporters", f"{_variable(signal)} names an exporter that nobody has installed, {_STOPS}", mend)


def _switched_off(names: Mapping[str, list[str]]) -> list[Finding]:
    off = [signal for signal in ("traces", "metrics") if not names[signal]]
    if len(off) == 2:
        mend = "export OTEL_TRACES_EXPORTER=otlp OTEL_METRICS_EXPORTER=otlp"
        return [fail("exporters", "neither traces nor metrics have an exporter", mend)]
    return [warn("exporters", f"{signal} have no exporter", export(_variable(signal), "otlp")) for signal in off]


def _named(env: Mapping[str, str], inventory: Inventory) -> list[Finding]:
    findings: list[Finding] = []
    for variable, group, stops in _NAMED:
        names = [name.strip() for name in env.get(variable, "").split(",") if name.strip()]
        if any(name not in inventory.names(group) and name.lower() != "none" for name in names):
            report = fail if stops else warn
            findings.append(report("exporters", f"{variable} names what nobody has installed", f"unset {variable}"))
    return findings


def _sampling(env: Mapping[str, str]) -> list[Finding]:
    sampler = env.get("OTEL_TRACES_SAMPLER", "")
    off = sampler in {"always_off", "parentbased_always_off"}
    if sampler.endswith("traceidratio"):
        try:
            off = float(env.get("OTEL_TRACES_SAMPLER_ARG", "1")) <= 0
        except ValueError:
            off = False
    if not off:
        return []
    return [warn("exporters", "OTEL_TRACES_SAMPLER drops every trace that begins here", "unset OTEL_TRACES_SAMPLER")]


def _target(env: Mapping[str, str], signal: str, protocol: Protocol, protocol_variable: str) -> Target:
    def said(name: str) -> tuple[str, str | None]:
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}"
        return (
            (own, env[own]) if env.get(own) else (f"OTEL_EXPORTER_OTLP_{name}", env.get(f"OTEL_EXPORTER_OTLP_{name}"))
        )

    variable, url = said("ENDPOINT")
    if protocol == "grpc":
        url = url or "http://localhost:4317"
        insecure = said("INSECURE")[1]
        scheme = urlsplit(url).scheme
        secure = scheme == "https" or (scheme != "http" if insecure is None else insecure.lower() != "true")
    else:
        url = url or "http://localhost:4318"
        if variable == "OTEL_EXPORTER_OTLP_ENDPOINT":
            url = f"{url.removesuffix('/')}/v1/{signal}"
        secure = urlsplit(url).scheme == "https"
    return Target(
        signal, protocol, url, variable, protocol_variable, secure, _headers(said("HEADERS")[1]),
        said("CERTIFICATE")[1], said("CLIENT_CERTIFICATE")[1], said("CLIENT_KEY")[1],
    )  # fmt: skip


def _headers(text: str | None) -> dict[str, str]:
    from opentelemetry.util.re import parse_env_headers

    return dict(parse_env_headers(text, liberal=True)) if text else {}


def _not_headers(env: Mapping[str, str]) -> list[Finding]:
    """What stands for headers and is none is left out by the exporters, with the token in it."""
    findings: list[Finding] = []
    for name in ("", *(f"{signal.upper()}_" for signal in SIGNALS)):
        variable = f"OTEL_EXPORTER_OTLP_{name}HEADERS"
        parts = [part for part in env.get(variable, "").split(",") if part.strip()]
        if len(parts) > len(_headers(env.get(variable))):
            mend = f"export {variable}=NAME=VALUE,NAME=VALUE"
            findings.append(fail("exporters", f"{variable} holds what is no NAME=VALUE, which is left out", mend))
    return findings


def constructed(loaded: Loaded) -> list[Finding]:
    """Exporters that refuse their settings keep everything else from being instrumented."""
    advice = "look at OTEL_EXPORTER_OTLP_COMPRESSION, _TIMEOUT, _CERTIFICATE"
    return [
        fail("exporters", f"{facts['exporter']} cannot be made of these settings ({facts['error']}): {advice}")
        for facts in loaded.exporters[:1]
    ]
