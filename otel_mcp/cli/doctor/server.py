"""Check that our package is installed where the server runs, is loaded in its process, and reaches its app."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from otel_mcp.cli.doctor.inspection import Distribution, Inventory, Loaded
from otel_mcp.cli.doctor.launch import SERVERS, Launch
from otel_mcp.cli.doctor.report import INSTALL, Finding, export, fail, ok, skip, warn

OURS: Final = "otel-mcp-sessions"
_NAMESAKE: Final = "otel-mcp"
_PIP_INSTALL: Final = f"-m pip install '{OURS}[otlp]'  # in a checkout: '.[otlp]'"
_INSTRUMENTS_EXTRA: Final = "instruments-any"
"""The extra that lists the libraries we instrument; one of them is enough."""
_DISABLED: Final = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
_EXCLUDED: Final = ("OTEL_PYTHON_MCP_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS")
_PATHS: Final = ("/mcp", "/mcp/", "/sse")
_PATCHED: Final = (
    "starlette.applications.Starlette",
    "litestar.app.Litestar",
    "otel_mcp.api.MCPMiddleware",
)
"""Apps that are observed on any server."""
_DISPATCH: Final = ("_compose_server_middleware", "_handle_request")
"""Methods with which the SDK dispatches a message, in 2.x and 1.x."""
_OTHER_MCP_INSTRUMENTATIONS: Final = ("opentelemetry-instrumentation-mcp", "openinference-instrumentation-mcp")
_MIDDLEWARE: Final = "app = MCPMiddleware(app)  # from otel_mcp import MCPMiddleware"


def package(inventory: Inventory, launch: Launch) -> Iterator[Finding]:
    """Check that our package, and not its namesake, is installed in the server's environment."""
    own, wrapper = launch.interpreter, launch.wrapper_interpreter
    python = "python" if own is None or Path(own).parent == Path(sys.executable).parent else own
    namesake, ours = inventory.distributions.get(_NAMESAKE), inventory.distributions.get(OURS)
    if namesake is not None and ours is None:
        found = f"{_NAMESAKE} {namesake['version']} is installed, which is another project; ours is {OURS}"
        yield fail(found, f"{python} -m pip uninstall -y {_NAMESAKE} && {python} {_PIP_INSTALL}")
    elif namesake is not None and namesake.get("provides_module"):
        mend = f"{python} -m pip uninstall -y {_NAMESAKE} {OURS} && {python} {_PIP_INSTALL}"
        found = f"{_NAMESAKE} {namesake['version']}, another project, has overwritten the module of {OURS}"
        yield fail(found, mend)
    elif ours is None or "otel_mcp" not in inventory.names("instrumentor"):
        why = "; there is a module otel_mcp, but no entry point for opentelemetry-instrument"
        found = f"{OURS} is not installed in {inventory.executable}{why if inventory.origin else ''}"
        yield fail(found, f"{python} {_PIP_INSTALL}")
    elif wrapper is not None and own is not None and Path(wrapper).parent != Path(own).parent:
        yield fail(
            f"opentelemetry-instrument belongs to {wrapper}, but {launch.program[0]} runs in {own}",
            f"{own} -m pip install opentelemetry-distro && {Path(own).parent / 'opentelemetry-instrument'} "
            f"{launch.program[0]} ...",
        )
    else:
        yield ok(f"{OURS} {ours['version']} on Python {inventory.version}")


def versions(inventory: Inventory) -> Iterator[Finding]:
    """Check that requirements are met, and that the libraries we instrument have supported versions."""
    ours = inventory.distributions.get(OURS)
    if ours is None:
        return
    libraries = list(_requirements(ours, _INSTRUMENTS_EXTRA))
    present = [need for need in libraries if canonicalize_name(need.name) in inventory.distributions]
    findings = [
        fail(f"{_have(inventory, need)}, but {OURS} needs {need}", f"python -m pip install -U '{need}'")
        for need in _requirements(ours)
        if not _meets(inventory, need)
    ]
    findings += [
        warn(f"{_have(inventory, need)}, but only {need} is supported", f"python -m pip install -U '{need}'")
        for need in present
        if not _meets(inventory, need)
    ]
    if not present:
        names = ", ".join(need.name for need in libraries)
        findings.append(warn(f"none of {names} is installed where the server runs"))
    # OpenTelemetry's packages are released together and pin each other.
    findings += [
        warn(
            f"{name} {dist['version']} needs {need}, but {_have(inventory, need)}",
            f"python -m pip install -U {name} '{need}'",
        )
        for name, dist in sorted(inventory.distributions.items())
        for need in (_requirements(dist) if name != OURS else ())
        if not _meets(inventory, need)
    ]
    yield from findings or [
        ok(f"{', '.join(_have(inventory, need) for need in present)}; all requirements are met"),
    ]


def _requirements(dist: Distribution, extra: str = "") -> Iterator[Requirement]:
    for text in dist["requires"]:
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
    return held is not None and need.specifier.contains(held["version"], prereleases=True)


def _have(inventory: Inventory, need: Requirement) -> str:
    held = inventory.distributions.get(canonicalize_name(need.name))
    return f"{need.name} {held['version']}" if held is not None else f"{need.name} is not installed"


def sdk(env: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the SDK is not switched off as a whole, and that our URLs are not excluded."""
    is_off = env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if is_off:
        yield fail("OTEL_SDK_DISABLED switches all of OpenTelemetry off", "unset OTEL_SDK_DISABLED")
    variable = next((name for name in _EXCLUDED if env.get(name)), None)
    path = _excluded(env[variable]) if variable is not None else None
    if path is not None:
        yield fail(f"{variable} excludes {path}, so nothing there is observed", f"unset {variable}")
    elif not is_off:
        yield ok("enabled")


def _excluded(patterns: str) -> str | None:
    try:
        excluded = re.compile("|".join(part.strip() for part in patterns.split(",")))
    except re.error:
        return None
    return next((path for path in _PATHS if excluded.search(f"http://localhost:8000{path}")), None)


def disabled_names(env: Mapping[str, str]) -> set[str]:
    """Return the names of disabled instrumentations."""
    return {name.strip() for name in env.get(_DISABLED, "").split(",") if name.strip()}


def _without(names: set[str]) -> str:
    return export(_DISABLED, ",".join(sorted(names))) if names else f"unset {_DISABLED}"


def disabled(env: Mapping[str, str]) -> Iterator[Finding]:
    """Check that our instrumentation is not disabled by name."""
    names, ours = disabled_names(env), {"otel_mcp", "*"}
    if guilty := sorted(names & ours):
        yield fail(f"{_DISABLED} names {' and '.join(guilty)}", _without(names - ours))
    else:
        yield ok(f"{_DISABLED} names only {', '.join(sorted(names))}" if names else f"{_DISABLED} is not set")


def start(launch: Launch, loaded: Loaded | None) -> Iterator[Finding]:
    """Check that the command loads the instrumentation in the server's process."""
    flag, program = launch.bypassing_flag, launch.program
    # Without assignments before the program, which may contain passwords.
    words = [program[0], *program[2:]] if flag is not None and flag in program[1:2] else program
    mend = shlex.join(["opentelemetry-instrument", *words])
    script = next((word for word in program[1:] if word.endswith(".py") and Path(word).is_file()), None)
    if not launch.given:
        yield skip("no command was given: otel-mcp doctor -- opentelemetry-instrument uvicorn app:app")
    elif launch.missing is not None:
        script_path = Path(sys.executable).with_name(launch.missing)
        known = f'export PATH={shlex.quote(str(script_path.parent))}:"$PATH"' if script_path.is_file() else None
        is_wrapper = launch.missing == "opentelemetry-instrument"
        yield fail(f"{launch.missing} is not found on PATH", known or (INSTALL if is_wrapper else None))
    elif not program:
        yield fail(launch.unknown or "", "opentelemetry-instrument --help")
    elif launch.transport == "stdio":
        transport = "http" if launch.server == "fastmcp" else "streamable-http"
        yield fail("the command serves stdio; only servers over HTTP are observed", f"{mend} --transport {transport}")
    elif launch.auto_directory is None:
        if launch.app is not None and loaded is not None and loaded.instrumented:
            yield ok(f"{launch.app} loads the instrumentation itself")
        elif launch.app is None and script is not None and _instruments(script):
            yield skip(f"{script} seems to load the instrumentation itself; it was not run")
        else:
            yield fail("the command is not started with opentelemetry-instrument", mend)
    elif launch.shadowing is not None:
        yield fail(f"{launch.shadowing} is found before the sitecustomize.py of opentelemetry-instrument", mend)
    elif flag is not None:
        yield fail(f"python {flag} ignores the sitecustomize.py of opentelemetry-instrument", mend)
    elif launch.late_variables:
        found = f"{', '.join(launch.late_variables)} of --env-file are read after the instrumentation is loaded"
        yield warn(found, f"set -a; . {shlex.quote(launch.env_file or '')}; set +a")
    else:
        yield ok("opentelemetry-instrument loads the instrumentation in the server's process")


def _instruments(script: str) -> bool:
    text = Path(script).read_text("utf-8", "replace")
    return "MCPInstrumentor" in text or "opentelemetry.instrumentation.auto_instrumentation" in text


def siblings(loaded: Loaded, inventory: Inventory, names: set[str]) -> Iterator[Finding]:
    """Check that the other instrumentations load; after one that raises, none loads."""
    for facts in loaded.siblings:
        name, dist = facts["sibling"], facts.get("dist", "")
        mend = _without({*names, name})
        raised = f"{facts.get('error', '')} at {facts['where']}" if facts.get("where") else facts.get("error", "")
        if facts["kind"] == "raises":
            yield fail(f"{dist} raises, so that nothing after it loads ({raised})", mend)
        elif facts["kind"] == "distro":
            yield fail(
                f"the distro {name} raises, so that nothing loads ({raised})", export("OTEL_PYTHON_DISTRO", "distro")
            )
        else:
            why = f": {facts['why']}" if facts["kind"] == "conflict" else f" ({raised})"
            yield warn(f"{dist} does not load{why}", mend)
    if not loaded.siblings:
        others = sorted(inventory.names("instrumentor") - {"otel_mcp"} - names)
        yield ok(f"also loaded: {', '.join(others)}" if others else "no other instrumentation")
    failed = {facts["sibling"] for facts in loaded.siblings}
    for name, _, dist in inventory.entry_points.get("opentelemetry_instrumentor", ()):
        if dist in _OTHER_MCP_INSTRUMENTATIONS and name not in failed | names:
            version = inventory.distributions[dist]["version"]
            yield warn(f"{dist} {version} makes a second span for every call", _without({*names, name}))


def seams(loaded: Loaded, inventory: Inventory, launch: Launch, *, is_loaded: bool) -> Iterator[Finding]:
    """Check that all seams are patched, and that one of them reaches the app."""
    app, is_well = loaded.app, True
    unseen = [f"{module}: {name}" for module, name, state in loaded.seams if state == "open"]
    dispatch = [
        state for module, name, state in loaded.seams if module.startswith("mcp.server.") and name.endswith(_DISPATCH)
    ]
    if loaded.broken is not None:
        yield warn(f"the dry run failed ({_what(loaded.broken)})")
    elif loaded.timed_out is not None:
        yield warn(f"{loaded.timed_out} took too long", "otel-mcp doctor --timeout 30 -- ...")
    elif app is not None and app["app"] is None:
        yield fail(f"{launch.app} cannot be imported ({_what(app)})", _importable(launch, app))
    elif not is_loaded and not loaded.instrumented:
        yield skip("nothing is patched, for a reason given above")
    elif unseen:
        yield fail(f"not patched: {', '.join(unseen)}; the app or its imports restored the original", _MIDDLEWARE)
    else:
        if dispatch and "attached" not in dispatch:
            held, is_well = inventory.distributions.get("mcp"), False
            version = f" {held['version']}" if held is not None else ""
            found = f"the MCP SDK{version} has none of the methods that we patch; its calls have no span of ours"
            yield fail(found, f"python -m pip install -U {OURS}")
        is_known = launch.server in {*SERVERS, "fastmcp", "mcp", None}
        if app is not None and not is_known and not any(base in _PATCHED for base in app["bases"]):
            is_well = False
            yield fail(f"{launch.app} is an ASGI app that no patch reaches on {launch.server}", _MIDDLEWARE)
        if launch.given and launch.app is None:
            is_well = False
            yield skip(f"the app was not imported: {launch.unknown}")
        if is_well:
            where = f"importing {launch.app}" if launch.app is not None else "importing the installed libraries"
            yield ok(f"{where} patches {sum(state == 'attached' for _, _, state in loaded.seams)} methods")


def _what(facts: Mapping[str, Any]) -> str:
    error = f"{facts['error']}: {facts['missing']}" if facts["missing"] else facts["error"]
    return f"{error} at {facts['where']}" if facts["where"] else error


def _importable(launch: Launch, facts: Mapping[str, Any]) -> str | None:
    """Return a line that makes the app importable, if a module is missing."""
    if facts["error"] != "ModuleNotFoundError" or not facts["missing"]:
        return None
    if launch.app is not None and launch.app.module and launch.app.module.startswith(facts["missing"]):
        return f"cd THE_FOLDER_OF/{launch.app.module.replace('.', '/')}.py"
    return f"python -m pip install {facts['missing'].partition('.')[0]}"
