"""What is installed: our package and not its namesake, versions, and pins that cannot be met."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from otel_mcp.cli.doctor.finding import Finding, fail, ok, warn
from otel_mcp.cli.doctor.inspection import Distribution, Inventory
from otel_mcp.cli.doctor.launch import Launch

OURS: Final = "otel-mcp-sessions"
NAMESAKE: Final = "otel-mcp"
_INSTALL: Final = f"-m pip install '{OURS}[otlp]'"
_SERVERS: Final = "instruments-any"
"""The extra that lists the libraries of which any one suffices."""


def installed(inventory: Inventory, launch: Launch) -> list[Finding]:
    """Our package is there, in the environment in which the server runs, and is not somebody else's."""
    python = _python(launch)
    namesake = inventory.distributions.get(NAMESAKE)
    ours = inventory.distributions.get(OURS)
    if namesake is not None and ours is None:
        return [
            fail(
                "package",
                f"{NAMESAKE} {namesake.version} is installed, which is somebody else's project; ours is {OURS}",
                f"{python} -m pip uninstall -y {NAMESAKE} && {python} {_INSTALL}",
            )
        ]
    if namesake is not None and namesake.provides_module:
        return [
            fail(
                "package",
                f"{NAMESAKE} {namesake.version}, somebody else's project, has written over the module of {OURS}",
                f"{python} -m pip uninstall -y {NAMESAKE} {OURS} && {python} {_INSTALL}",
            )
        ]
    if ours is None or not inventory.names("opentelemetry_instrumentor") & {"otel_mcp"}:
        where = f"{OURS} is not installed in {inventory.executable}"
        why = "there is a module otel_mcp, but nothing that opentelemetry-instrument finds" if inventory.origin else ""
        return [fail("package", ", ".join(filter(None, (where, why))), f"{python} {_INSTALL}")]
    mixed = _mixed(launch)
    return [mixed or ok("package", f"{OURS} {ours.version} on Python {inventory.version}")]


def _python(launch: Launch) -> str:
    """The interpreter as it is to be written in a command."""
    if launch.interpreter is None or Path(launch.interpreter).parent == Path(sys.executable).parent:
        return "python"
    return launch.interpreter


def _mixed(launch: Launch) -> Finding | None:
    wrapper, own = launch.wrapper_interpreter, launch.interpreter
    if wrapper is None or own is None or Path(wrapper).parent == Path(own).parent:
        return None
    return fail(
        "package",
        f"opentelemetry-instrument belongs to {wrapper}, but {launch.program[0]} runs in {own}",
        f"{own} {_INSTALL} && {Path(own).parent / 'opentelemetry-instrument'} {launch.program[0]} ...",
    )


def versions(inventory: Inventory) -> list[Finding]:
    """Everything that we need is there in a version that we need, and what we instrument in one that we know."""
    ours = inventory.distributions.get(OURS)
    if ours is None:
        return []
    findings = [
        fail("versions", f"{_have(inventory, need)}, but {OURS} needs {need}", f"python -m pip install -U '{need}'")
        for need in _requirements(ours)
        if not _meets(inventory, need)
    ]
    libraries = list(_requirements(ours, _SERVERS))
    present = [need for need in libraries if canonicalize_name(need.name) in inventory.distributions]
    findings += [
        warn("versions", f"{_have(inventory, need)}, but we know {need} only", f"python -m pip install -U '{need}'")
        for need in present
        if not _meets(inventory, need)
    ]
    if not present:
        names = ", ".join(need.name for need in libraries)
        findings.append(warn("versions", f"none of {names} is installed where the server runs"))
    findings += _conflicts(inventory)
    if not findings:
        found = ", ".join(_have(inventory, need) for need in present)
        findings.append(ok("versions", f"{found}; all requirements are met"))
    return findings


def _conflicts(inventory: Inventory) -> Iterator[Finding]:
    """Pins of OpenTelemetry's packages among one another: they are released together."""
    for name, dist in sorted(inventory.distributions.items()):
        if name == OURS:
            continue
        for need in _requirements(dist):
            if not _meets(inventory, need):
                yield warn(
                    "versions",
                    f"{name} {dist.version} needs {need}, but {_have(inventory, need)}",
                    f"python -m pip install -U {name} '{need}'",
                )


def _requirements(dist: Distribution, extra: str = "") -> Iterator[Requirement]:
    for text in dist.requires:
        try:
            need = Requirement(text)
        except InvalidRequirement:
            continue
        if extra and (need.marker is None or need.marker.evaluate({"extra": ""})):
            continue
        if need.marker is None or need.marker.evaluate({"extra": extra}):
            need.marker = None
            yield need


def _meets(inventory: Inventory, need: Requirement) -> bool:
    held = inventory.distributions.get(canonicalize_name(need.name))
    return held is not None and need.specifier.contains(held.version, prereleases=True)


def _have(inventory: Inventory, need: Requirement) -> str:
    held = inventory.distributions.get(canonicalize_name(need.name))
    return f"{need.name} {held.version}" if held is not None else f"{need.name} is not installed"
