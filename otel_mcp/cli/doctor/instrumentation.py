"""Whether the instrumentation is loaded in the server's process, and reaches the app in it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from otel_mcp.cli.doctor.arguments import SERVERS
from otel_mcp.cli.doctor.finding import Finding, export, fail, ok, skip, warn
from otel_mcp.cli.doctor.inspection import Inventory, Loaded
from otel_mcp.cli.doctor.launch import Launch

_DISABLED: Final = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
_REACHED: Final = ("starlette.applications.Starlette", "litestar.app.Litestar", "otel_mcp.middleware.MCPMiddleware")
"""Apps that are watched on any server."""
_DISPATCH: Final = ("_compose_server_middleware", "_handle_request")
"""Where the SDK takes up a message, in 2.x and in 1.x."""
_OF_MCP: Final = ("opentelemetry-instrumentation-mcp", "openinference-instrumentation-mcp")
_PATHS: Final = ("/mcp", "/mcp/", "/sse")


def switched_off(env: Mapping[str, str]) -> list[Finding]:
    """The SDK as a whole, and URLs that are left alone."""
    findings: list[Finding] = []
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        findings.append(fail("sdk", "OTEL_SDK_DISABLED switches all of OpenTelemetry off", "unset OTEL_SDK_DISABLED"))
    variable = next(
        (name for name in ("OTEL_PYTHON_MCP_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS") if env.get(name)), None
    )
    if variable is not None and (path := _excluded(env[variable])):
        findings.append(fail("sdk", f"{variable} excludes {path}, so nothing there is watched", f"unset {variable}"))
    return findings or [ok("sdk", "enabled")]


def _excluded(patterns: str) -> str | None:
    try:
        excluded = re.compile("|".join(part.strip() for part in patterns.split(",")))
    except re.error:
        return None
    return next((path for path in _PATHS if excluded.search(f"http://localhost:8000{path}")), None)


def disabled_names(env: Mapping[str, str]) -> set[str]:
    """The instrumentations that are switched off by name."""
    return {name.strip() for name in env.get(_DISABLED, "").split(",") if name.strip()}


def disabled(env: Mapping[str, str]) -> list[Finding]:
    """Ours is not switched off by name."""
    names = disabled_names(env)
    guilty = sorted(names & {"otel_mcp", "*"})
    if not guilty:
        others = f", which leaves us alone: {', '.join(sorted(names))}" if names else " is not set"
        return [ok("disabled", f"{_DISABLED}{others}")]
    left = [name.strip() for name in env[_DISABLED].split(",") if name.strip() not in {"otel_mcp", "*", ""}]
    mend = export(_DISABLED, ",".join(left)) if left else f"unset {_DISABLED}"
    return [fail("disabled", f"{_DISABLED} names {' and '.join(guilty)}", mend)]


def started(launch: Launch, loaded: Loaded | None) -> list[Finding]:
    """The command brings the instrumentation into the server's process."""
    if not launch.given:
        return [skip("start", "no command was given: otel-mcp doctor -- opentelemetry-instrument uvicorn app:app")]
    if (no_server := _no_server(launch)) is not None:
        return [no_server]
    if launch.auto_directory is None:
        return [_without_wrapper(launch, loaded)]
    if launch.shadowing is not None:
        found = f"{launch.shadowing} is found before the sitecustomize.py of opentelemetry-instrument"
        return [fail("start", found, _mended(launch))]
    if (flag := launch.bypassing_flag) is not None:
        return [fail("start", f"python {flag} does not load what opentelemetry-instrument prepares", _mended(launch))]
    if launch.late_variables:
        found = f"{', '.join(launch.late_variables)} of --env-file come after the instrumentation is loaded"
        return [warn("start", found, f"set -a; . {shlex.quote(launch.env_file or '')}; set +a")]
    return [ok("start", "opentelemetry-instrument loads the instrumentation in the server's process")]


def _no_server(launch: Launch) -> Finding | None:
    """The command starts no server that could be observed."""
    if launch.missing is not None:
        beside = Path(sys.executable).with_name(launch.missing)
        mend = None
        if beside.is_file():
            mend = f'export PATH={shlex.quote(str(beside.parent))}:"$PATH"'
        elif launch.missing == "opentelemetry-instrument":
            mend = "python -m pip install 'otel-mcp-sessions[otlp]'"
        return fail("start", f"{launch.missing} is not found on PATH", mend)
    if not launch.program:
        return fail("start", launch.unknown or "", "opentelemetry-instrument --help")
    if launch.transport == "stdio":
        transport = "http" if launch.server == "fastmcp" else "streamable-http"
        mend = f"{_mended(launch)} --transport {transport}"
        return fail("start", "the command serves stdio; only servers over HTTP are observed", mend)
    return None


def _without_wrapper(launch: Launch, loaded: Loaded | None) -> Finding:
    if launch.app is not None and loaded is not None and loaded.instrumented:
        return ok("start", f"{launch.app} loads the instrumentation itself")
    if launch.app is None and (script := _instrumented_script(launch)) is not None:
        return skip("start", f"{script} seems to load the instrumentation itself; it was not run")
    return fail("start", "the command is not started with opentelemetry-instrument", _mended(launch))


def _instrumented_script(launch: Launch) -> str | None:
    """A Python file of the command that speaks of the instrumentation."""
    for word in launch.program[1:]:
        if word.endswith(".py") and Path(word).is_file():
            text = Path(word).read_text("utf-8", "replace")
            if "MCPInstrumentor" in text or "opentelemetry.instrumentation.auto_instrumentation" in text:
                return word
    return None


def _mended(launch: Launch) -> str:
    return shlex.join(_prefixed(launch))


def _prefixed(launch: Launch) -> list[str]:
    """The command as it ought to be, without what stands before the program, which may hold passwords."""
    program = list(launch.program)
    flag = launch.bypassing_flag
    if flag is not None and flag in program[1:2]:
        program = [program[0], *program[2:]]
    return ["opentelemetry-instrument", *program]


def siblings(loaded: Loaded, inventory: Inventory, names: set[str]) -> list[Finding]:
    """Every other instrumentation loads; one that raises keeps those after it from loading."""
    findings: list[Finding] = []
    for facts in loaded.siblings:
        name, dist = facts["sibling"], facts.get("dist", "")
        mend = export(_DISABLED, ",".join(sorted({*names, name})))
        raised = f"{facts.get('error', '')} at {facts['where']}" if facts.get("where") else facts.get("error", "")
        match facts["kind"]:
            case "raises":
                findings.append(fail("siblings", f"{dist} aborts all that load after it ({raised})", mend))
            case "distro":
                findings.append(fail("siblings", f"the distro {name} keeps everything from loading ({raised})", "export OTEL_PYTHON_DISTRO=distro"))  # fmt: skip # noqa: E501
            case "conflict":
                findings.append(warn("siblings", f"{dist} does not load: {facts['why']}", mend))
            case _:
                findings.append(warn("siblings", f"{dist} does not load ({raised})", mend))
    if not findings:
        others = sorted(inventory.names("opentelemetry_instrumentor") - {"otel_mcp"} - names)
        findings.append(
            ok("siblings", f"loaded as well: {', '.join(others)}" if others else "no other instrumentation")
        )
    return findings + _second_of_mcp(inventory, loaded, names)


def _second_of_mcp(inventory: Inventory, loaded: Loaded, names: set[str]) -> list[Finding]:
    """Another instrumentation of MCP makes spans of its own for the same messages."""
    failed = {facts["sibling"] for facts in loaded.siblings}
    return [
        warn("siblings", f"{dist} {inventory.distributions[dist].version} makes spans of its own for every call",
             export(_DISABLED, ",".join(sorted({*names, name}))))
        for name, _, dist in inventory.entry_points.get("opentelemetry_instrumentor", ())
        if dist in _OF_MCP and name not in failed | names
    ]  # fmt: skip


def seams(loaded: Loaded, inventory: Inventory, launch: Launch, *, is_loaded: bool) -> list[Finding]:
    """Every place at which we meet a library is taken, and the app is one that they reach."""
    if loaded.broken is not None:
        return [warn("seams", f"the dry run failed ({_what(loaded.broken)})")]
    if loaded.timed_out is not None:
        return [warn("seams", f"{loaded.timed_out} took too long", "otel-mcp doctor --timeout 30 -- ...")]
    if loaded.app is not None and loaded.app["app"] is None:
        return [_import_failed(launch, loaded.app)]
    if not is_loaded and not loaded.instrumented:
        return [skip("seams", "nothing is patched, for a reason given above")]
    unseen = [f"{module}: {name}" for module, name, state in loaded.seams if state == "open"]
    if unseen:
        return [
            fail("seams", f"not patched: {', '.join(unseen)}; the app, or what it imports, puts the original back",
                 "app = MCPMiddleware(app)  # from otel_mcp import MCPMiddleware")
        ]  # fmt: skip
    findings = _unknown_versions(loaded, inventory)
    if (found := _not_reached(launch, loaded)) is not None:
        findings.append(found)
    if launch.given and launch.app is None:
        findings.append(skip("seams", f"the app was not imported: {launch.unknown}"))
    if not findings:
        count = sum(state == "attached" for _, _, state in loaded.seams)
        where = f"importing {launch.app}" if launch.app is not None else "importing the installed libraries"
        findings.append(ok("seams", f"{where} patches {count} places"))
    return findings


def _what(facts: Mapping[str, Any]) -> str:
    error = facts["error"]
    if facts["missing"]:
        error = f"{error}: {facts['missing']}"
    return f"{error} at {facts['where']}" if facts["where"] else error


def _import_failed(launch: Launch, facts: Mapping[str, Any]) -> Finding:
    mend = None
    if facts["error"] == "ModuleNotFoundError" and facts["missing"]:
        mend = f"python -m pip install {facts['missing'].partition('.')[0]}"
        if launch.app is not None and launch.app.module and launch.app.module.startswith(facts["missing"]):
            mend = f"cd THE_FOLDER_OF/{launch.app.module.replace('.', '/')}.py"
    return fail("seams", f"{launch.app} cannot be imported ({_what(facts)})", mend)


def _unknown_versions(loaded: Loaded, inventory: Inventory) -> list[Finding]:
    """The SDK is loaded, but in none of the shapes that we know."""
    dispatch = [state for module, name, state in loaded.seams
                if module.startswith("mcp.server.") and name.endswith(_DISPATCH)]  # fmt: skip
    if not dispatch or "attached" in dispatch:
        return []
    held = inventory.distributions.get("mcp")
    version = f" {held.version}" if held is not None else ""
    found = f"the MCP SDK{version} has none of the places that we know; its calls have no span of ours"
    return [fail("seams", found, "python -m pip install -U otel-mcp-sessions")]


def _not_reached(launch: Launch, loaded: Loaded) -> Finding | None:
    if loaded.app is None or launch.server in {*SERVERS, "fastmcp", "mcp", None}:
        return None
    if any(base in _REACHED for base in loaded.app["bases"]):
        return None
    return fail("seams", f"{launch.app} is an ASGI app that no seam reaches on {launch.server}",
                "app = MCPMiddleware(app)  # from otel_mcp import MCPMiddleware")  # fmt: skip
