"""What stands in where a program cannot be built: Debian's Prometheus, and a file instead of Jaeger."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from .builds import NotBuilt
from .otlp import ERROR
from .paths import CACHE, ROOT

_TYPES: Final = {"intValue": int, "doubleValue": float, "boolValue": bool, "stringValue": str}


def debian(program: str) -> Path:
    """Return a program of Debian's `prometheus` package, unpacked into the cache: nothing is installed or started.

    Raises:
        NotBuilt: It is not to be had either.
    """
    folder = CACHE / "debian-prometheus"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="debian-") as work:
            # A machine that has never updated its lists knows no packages.
            if not _run(work, "apt-get", "download", "-qq", "prometheus"):
                _run(work, "apt-get", "update", "-qq")
                _run(work, "apt-get", "download", "-qq", "prometheus")
            package = next(Path(work).glob("prometheus_*.deb"), None)
            if package is None or not _run(work, "dpkg", "-x", package.name, "unpacked"):
                raise NotBuilt("Debian's prometheus cannot be downloaded here")
            (Path(work) / "unpacked").rename(folder)
    return folder / "usr" / "bin" / program


def _run(folder: str, *command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=300, check=False).returncode == 0


def scrape_config(folder: Path, served: str, own: str) -> Path:
    """Return `grafana/prometheus-scrape.yaml` with the two addresses put in."""
    text = (ROOT / "grafana" / "prometheus-scrape.yaml").read_text(encoding="utf-8")
    alerts = ROOT / "grafana" / "alerts"
    changes = {"collector-to-scrape:9464": served, "collector-to-scrape:8888": own, "- alerts/": f"- {alerts}/"}
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"grafana/prometheus-scrape.yaml has no {old!r} any more")
        text = text.replace(old, new)
    path = folder / "prometheus-scrape.yaml"
    path.write_text(text, encoding="utf-8")
    return path


class TraceFile:
    """Traces that `collector/config/to-file.yaml` has written, asked as Jaeger is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def search(self, service: str, *, operation: str = "", tags: Mapping[str, str] | None = None) -> list[Any]:
        """Return the traces with a span like this."""
        wanted = {str(key): str(value) for key, value in (tags or {}).items()}
        found: dict[str, list[dict[str, Any]]] = {}
        matching: set[str] = set()
        for of, span in self._spans():
            found.setdefault(span["traceID"], []).append(span)
            held = {tag["key"]: str(tag["value"]) for tag in span["tags"]}
            if of == service and operation in ("", span["operationName"]) and wanted.items() <= held.items():
                matching.add(span["traceID"])
        return [{"traceID": trace_id, "spans": found[trace_id]} for trace_id in matching]

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """Return the spans of a trace; none if it is not there."""
        return [span for _, span in self._spans() if span["traceID"] == trace_id]

    def _spans(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else ():
            for resource in json.loads(line)["resourceSpans"]:
                service = _attributes(resource["resource"]).get("service.name", "")
                for scope in resource["scopeSpans"]:
                    for span in scope["spans"]:
                        yield service, _as_jaeger(span)


def _as_jaeger(span: dict[str, Any]) -> dict[str, Any]:
    status: dict[str, Any] = span.get("status") or {}
    failed = status.get("code") == ERROR
    error = {"error": True, "otel.status_description": status.get("message", "")} if failed else {}
    events = [{"fields": _fields(_attributes(event))} for event in span.get("events") or ()]
    tags = _fields({**_attributes(span), **error})
    return {"traceID": span["traceId"], "operationName": span["name"], "tags": tags, "logs": events}


def _fields(of: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in of.items()]


def _attributes(of: dict[str, Any]) -> dict[str, Any]:
    return {entry["key"]: _value(entry["value"]) for entry in of.get("attributes") or ()}


def _value(value: dict[str, Any]) -> Any:
    ((kind, raw),) = value.items()
    return _TYPES[kind](raw) if kind in _TYPES else raw
