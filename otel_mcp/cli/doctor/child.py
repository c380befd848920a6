"""Inspect a Python environment from the inside: a script that the server's interpreter runs.

Until it has listed the installed packages, it needs only the standard library, since this package may be missing there.
It writes one JSON object a line to standard output; output of imported code is discarded. It starts no server, and no
exporter sends: the process ends without exit handlers.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

GROUPS = [
    *("distro", "configurator", "pre_instrument", "instrumentor", "propagator", "traces_sampler", "id_generator"),
    *("traces_exporter", "metrics_exporter", "logs_exporter"),
]


class Report:
    """Writes JSON lines to the original standard output; discards everything else that is printed."""

    def __init__(self) -> None:
        self._output = os.dup(1)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)

    def send(self, **facts: Any) -> None:
        data = json.dumps(facts).encode() + b"\n"
        while data:
            data = data[os.write(self._output, data) :]

    def attempt(self, load: Callable[[], object], ignored: tuple[type[Exception], ...] = (), **facts: Any) -> Any:
        """Call `load`, and report its failure."""
        try:
            return load()
        except ignored:
            return None
        except Exception as error:
            # At start, OpenTelemetry ignores a failed import and gives up on any other exception.
            self.send(**{"kind": "import" if isinstance(error, ImportError) else "raises", **facts, **failure(error)})


def inventory() -> dict[str, Any]:
    """List distributions, their OpenTelemetry entry points, and the file of the module `otel_mcp`."""
    distributions: dict[str, dict[str, Any]] = {}
    points: dict[str, list[list[str]]] = {f"opentelemetry_{group}": [] for group in GROUPS}
    for found in metadata.distributions():
        # Half-removed distributions have no metadata and no name.
        name = (found.metadata["Name"] or "").lower().replace("_", "-")
        if not name or name in distributions:
            continue
        is_ours = name.startswith(("opentelemetry-", "otel-", "openinference-"))
        distributions[name] = {"version": found.version, "requires": (found.requires or []) if is_ours else []}
        if name == "otel-mcp":
            files = [str(path) for path in found.files or ()]
            distributions[name]["provides_module"] = any(path.startswith("otel_mcp/") for path in files)
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
    """Describe an exception without its text, which may contain a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    where = f"{own[-1].filename}:{own[-1].lineno}" if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    missing = error.name if isinstance(error, ImportError) and error.name else ""
    return {"error": type(error).__name__, "where": where, "missing": missing}


def load_instrumentors(report: Report, disabled: set[str]) -> None:
    """Load what `opentelemetry-instrument` loads at start, but continue where it gives up.

    Without the configurator, which makes exporters and may use the network.
    """
    from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts
    from opentelemetry.instrumentation.distro import DefaultDistro

    distro: Any = DefaultDistro()
    chosen = os.environ.get("OTEL_PYTHON_DISTRO")
    for point in metadata.entry_points(group="opentelemetry_distro"):
        if chosen in (None, point.name):

            def configured(point: Any = point) -> Any:
                found = point.load()()
                found.configure()
                return found

            distro = report.attempt(configured, sibling=point.name, kind="distro", dist=_dist(point)) or distro
            break
    # The instrumented library may not be installed, which is not an error.
    absent = (ModuleNotFoundError,)
    for point in metadata.entry_points(group="opentelemetry_pre_instrument"):
        report.attempt(lambda point=point: point.load()(), absent, sibling=point.name, dist=_dist(point))
    for point in metadata.entry_points(group="opentelemetry_instrumentor"):
        if disabled & {point.name, "*"}:
            continue
        conflict: Any = get_dist_dependency_conflicts(point.dist) if point.dist is not None else None
        if conflict is None:
            load: Any = lambda point=point: distro.load_instrumentor(point, skip_dep_check=True)  # noqa: E731
            report.attempt(load, absent, sibling=point.name, dist=_dist(point))
        elif getattr(conflict, "found", None) or getattr(conflict, "found_any", None):
            report.send(sibling=point.name, kind="conflict", dist=_dist(point), why=str(conflict))


def _dist(point: Any) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def import_app(app: dict[str, Any]) -> Any:
    """Import the app as its server would, and call it if it is a factory."""
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


class _PatchStates:
    """Stands in for `Patches`: records whether each attribute is patched, and patches nothing."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def replace(self, owner: Any, name: str, make: Any) -> bool:
        found = getattr(owner, name, None)
        state = "absent" if found is None else "attached" if hasattr(found, "_otel_mcp_original") else "open"
        self.seen.append((f"{owner.__name__}.{name}", state))
        return False


def states(seams: Iterable[tuple[str, Any]]) -> list[list[str]]:
    """List module, attribute and state of every seam whose module is loaded."""
    found: list[list[str]] = []
    for module, apply in seams:
        if module not in sys.modules:
            continue
        patches = _PatchStates()
        try:
            apply(sys.modules[module], patches)
        except Exception:
            found.append([module, "", "absent"])
        found.extend([module, name, state] for name, state in patches.seen)
    return found


def look(report: Report, task: dict[str, Any]) -> None:
    """Load what the server's process would load, and report the results."""
    for group, name in task["exporters"]:
        # Making an exporter connects to nothing, but raises for unusable settings.
        for point in list(metadata.entry_points(group=group, name=name))[:1]:
            report.attempt(lambda point=point: point.load()(), exporter=name)
    for signal in ("TRACES", "METRICS", "LOGS"):
        os.environ[f"OTEL_{signal}_EXPORTER"] = "none"
    if task["initialise"]:
        load_instrumentors(report, set(task["disabled"]))
    report.send(step="loaded")
    ours: Any = importlib.import_module("otel_mcp.instrumentor")
    wanted = [module for module, _ in ours.TARGETS]
    if task["app"] is not None:
        wanted = task["modules"]
        try:
            app = import_app(task["app"])
            kinds: tuple[type, ...] = type(app).__mro__
            report.send(app=kinds[0].__name__, bases=[f"{kind.__module__}.{kind.__name__}" for kind in kinds])
        except BaseException as error:
            report.send(app=None, **failure(error))
    for module in wanted:
        # The module may not be installed, or not be in this version.
        report.attempt(lambda module=module: importlib.import_module(module), (ImportError,), library=module)
    report.send(seams=states(ours.TARGETS), instrumented=ours.MCPInstrumentor().is_instrumented_by_opentelemetry)


def main() -> None:
    """Report what is installed; then read a task from standard input and report what loads."""
    report = Report()
    try:
        report.send(inventory=inventory())
        if task := sys.stdin.readline():
            look(report, json.loads(task))
        report.send(step="done")
    except BaseException as error:
        report.send(broken=True, **failure(error))
    finally:
        # Without exit handlers, in which an exporter of the app would send.
        os._exit(0)


if __name__ == "__main__":
    main()
