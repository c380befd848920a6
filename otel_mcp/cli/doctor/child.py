"""Look at a Python environment from the inside. Runs in a process of its own, in the interpreter of the server.

Needs only the standard library until it has said what is installed, since the
interpreter may be one without this package. Standard output carries one JSON
object a line; whatever the imported code prints goes nowhere. No server is
started and no exporter sends: the process ends without exit handlers.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import Any

GROUPS = (
    "opentelemetry_distro",
    "opentelemetry_configurator",
    "opentelemetry_pre_instrument",
    "opentelemetry_instrumentor",
    "opentelemetry_propagator",
    "opentelemetry_traces_sampler",
    "opentelemetry_id_generator",
    "opentelemetry_traces_exporter",
    "opentelemetry_metrics_exporter",
    "opentelemetry_logs_exporter",
)
SERVER_SEAMS = {
    "uvicorn": ("uvicorn.config", "uvicorn.server"),
    "gunicorn": ("gunicorn.workers.gasgi", "uvicorn.config"),
    "hypercorn": ("hypercorn.app_wrappers",),
    "granian": ("granian.asgi",),
}
"""What a server imports itself before it takes up the app."""


class Report:
    """Sends one JSON object a line over what was standard output."""

    def __init__(self) -> None:
        self._to = os.dup(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)

    def send(self, **facts: Any) -> None:
        data = json.dumps(facts).encode() + b"\n"
        while data:
            data = data[os.write(self._to, data) :]


def inventory() -> dict[str, Any]:
    """List distributions, their entry points of OpenTelemetry, and where `otel_mcp` comes from."""
    distributions: dict[str, dict[str, Any]] = {}
    points: dict[str, list[list[str]]] = {group: [] for group in GROUPS}
    for found in metadata.distributions():
        # Half-removed distributions have no metadata, and no name.
        name = (found.metadata["Name"] or "").lower().replace("_", "-")
        if not name or name in distributions:
            continue
        is_ours = name.startswith(("opentelemetry-", "otel-", "openinference-"))
        distributions[name] = {"version": found.version, "requires": (found.requires or []) if is_ours else []}
        if name == "otel-mcp":
            distributions[name]["provides_module"] = any(
                str(path).startswith("otel_mcp/") for path in found.files or ()
            )
        for point in found.entry_points:
            if point.group in points:
                points[point.group].append([point.name, point.value, name])
    spec = importlib.util.find_spec("otel_mcp")
    return {
        "executable": sys.executable,
        "version": "{}.{}.{}".format(*sys.version_info),
        "distributions": distributions,
        "entry_points": points,
        "origin": spec.origin if spec else None,
    }


def failure(error: BaseException) -> dict[str, str]:
    """Describe an exception without its text, which may hold a secret of the user's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    where = f"{own[-1].filename}:{own[-1].lineno}" if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    missing = error.name if isinstance(error, ImportError) and error.name else ""
    return {"error": type(error).__name__, "where": where, "missing": missing}


def load_instrumentors(report: Report, disabled: set[str]) -> None:
    """Do what `opentelemetry-instrument` does at start, but go on where it gives up.

    Its configurator is left out: it makes exporters, and may ask the network.
    """
    distro = _distro(report)
    for point in metadata.entry_points(group="opentelemetry_pre_instrument"):
        _load(report, point, lambda point: point.load()())
    for point in metadata.entry_points(group="opentelemetry_instrumentor"):
        if not disabled & {point.name, "*"} and not _conflicts(report, point):
            _load(report, point, lambda point: distro.load_instrumentor(point, skip_dep_check=True))


def _distro(report: Report) -> Any:
    from opentelemetry.instrumentation.distro import DefaultDistro

    distro: Any = DefaultDistro()
    chosen = os.environ.get("OTEL_PYTHON_DISTRO")
    for point in metadata.entry_points(group="opentelemetry_distro"):
        if chosen in (None, point.name):
            try:
                distro = point.load()()
                distro.configure()
            except Exception as error:
                report.send(sibling=point.name, kind="distro", dist=_dist(point), **failure(error))
            break
    return distro


def _load(report: Report, point: Any, load: Callable[[Any], object]) -> None:
    try:
        load(point)
    except ModuleNotFoundError:
        return  # What it instruments is not installed.
    except ImportError as error:
        report.send(sibling=point.name, kind="import", dist=_dist(point), **failure(error))
    except Exception as error:
        report.send(sibling=point.name, kind="raises", dist=_dist(point), **failure(error))


def _conflicts(report: Report, point: Any) -> bool:
    """Whether what it instruments is there in another version; where it is not there at all, nothing is amiss."""
    from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts

    conflict: Any = get_dist_dependency_conflicts(point.dist) if point.dist is not None else None
    if conflict is None:
        return False
    if getattr(conflict, "found", None) or getattr(conflict, "found_any", None):
        report.send(sibling=point.name, kind="conflict", dist=_dist(point), why=str(conflict))
    return True


def _dist(point: Any) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def make_exporters(report: Report, wanted: list[list[str]]) -> None:
    """Construct the OTLP exporters, which refuse settings that they cannot use. They connect to nothing."""
    for group, name in wanted:
        for point in list(metadata.entry_points(group=group, name=name))[:1]:
            _make(report, group, point)


def _make(report: Report, group: str, point: Any) -> None:
    try:
        point.load()()
    except Exception as error:
        report.send(exporter=point.name, group=group, **failure(error))


def import_app(app: dict[str, Any]) -> Any:
    """Import the app as its server would, and call it where it is a factory."""
    if app["folder"] is not None:
        sys.path.insert(0, app["folder"])
    if app["file"] is not None:
        spec = importlib.util.spec_from_file_location("server_module", app["file"])
        if spec is None or spec.loader is None:
            raise ImportError(app["file"])
        sys.path.insert(0, os.path.dirname(os.path.abspath(app["file"])))
        module = importlib.util.module_from_spec(spec)
        sys.modules["server_module"] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(app["module"])
    if not app["attribute"]:
        return next((found for name in ("mcp", "server", "app") if (found := getattr(module, name, None))), None)
    found: Any = module
    for name in app["attribute"].split("."):
        found = getattr(found, name)
    return found() if app["factory"] else found


class _Looking:
    """Takes the place of `Patches`: notes whether each attribute is patched, and patches nothing."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def replace(self, owner: Any, name: str, make: Any) -> bool:
        found = getattr(owner, name, None)
        state = "absent" if found is None else "attached" if hasattr(found, "_otel_mcp_original") else "open"
        self.seen.append((f"{owner.__name__}.{name}", state))
        return False


def seams() -> list[list[str]]:
    """List module, attribute and state of every seam whose module is loaded."""
    from otel_mcp.integrations.patching import TARGETS

    states: list[list[str]] = []
    for module, apply in TARGETS:
        if module not in sys.modules:
            continue
        looking: Any = _Looking()
        try:
            apply(sys.modules[module], looking)
        except Exception:
            states.append([module, "", "absent"])
        states.extend([module, name, state] for name, state in looking.seen)
    return states


def _import_libraries(report: Report, server: str | None) -> None:
    """Import what seams are about: the server's own modules, or all that is installed where no app is known."""
    from otel_mcp.integrations.patching import TARGETS

    wanted = SERVER_SEAMS.get(server, ()) if server else [module for module, _ in TARGETS]
    for module in wanted:
        _import(report, module)


def _import(report: Report, module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError:
        return  # It is not installed, or not in this version.
    except Exception as error:
        report.send(library=module, **failure(error))


def look(report: Report, task: dict[str, Any]) -> None:
    """Load what the server's process would load, and report what became of it."""
    make_exporters(report, task["exporters"])
    for signal in ("TRACES", "METRICS", "LOGS"):
        os.environ[f"OTEL_{signal}_EXPORTER"] = "none"
    if task["initialise"]:
        load_instrumentors(report, set(task["disabled"]))
    report.send(step="loaded")
    if task["app"] is not None:
        try:
            app = import_app(task["app"])
            kinds: tuple[type, ...] = type(app).__mro__
            report.send(app=kinds[0].__name__, bases=[f"{kind.__module__}.{kind.__name__}" for kind in kinds])
        except BaseException as error:
            report.send(app=None, **failure(error))
        _import_libraries(report, task["server"] or "")
    else:
        _import_libraries(report, None)
    from otel_mcp.instrumentor import MCPInstrumentor

    report.send(seams=seams(), instrumented=MCPInstrumentor().is_instrumented_by_opentelemetry)


def main() -> None:
    """Report what is installed, then what loads, once standard input says what to look at."""
    report = Report()
    try:
        report.send(inventory=inventory())
        if task := sys.stdin.readline():
            look(report, json.loads(task))
        report.send(step="done")
    except BaseException as error:
        report.send(broken=True, **failure(error))
    finally:
        # Not a single exit handler: an exporter of the app's own would send.
        os._exit(0)


if __name__ == "__main__":
    main()
