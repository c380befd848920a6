"""Questions to Prometheus, Jaeger and Loki, over the interfaces that Grafana uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen


class Refused(Exception):
    """A question was not understood."""


class Prometheus:
    """A Prometheus server."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/v1"

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return what an expression yields at a time, or now.

        Raises:
            Refused: It is no valid expression, or Prometheus warns of it.
        """
        answer = _get(f"{self._url}/query", {"query": expr} | ({"time": at} if at else {}))
        if answer.get("warnings"):
            raise Refused(f"{answer['warnings']}: {expr}")
        return answer["data"]["result"]

    def query_range(self, expr: str, start: float, end: float, step: float = 5) -> list[dict[str, Any]]:
        """Return what an expression yields over time."""
        times = {"query": expr, "start": start, "end": end, "step": step}
        return _get(f"{self._url}/query_range", times)["data"]["result"]

    def exemplars(self, expr: str, start: float, end: float) -> set[str]:
        """Return the trace ids of an expression's exemplars."""
        answer = _get(f"{self._url}/query_exemplars", {"query": expr, "start": start, "end": end})
        found = (exemplar["labels"] for series in answer["data"] for exemplar in series["exemplars"])
        return {labels["trace_id"] for labels in found}

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule with its health."""
        groups = _get(f"{self._url}/rules", {})["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def series(self) -> list[dict[str, str]]:
        """Return the labels of every series."""
        return _get(f"{self._url}/series", {"match[]": '{__name__!=""}'})["data"]


class Traces(Protocol):
    """Where traces are: Jaeger, or what stands in for it."""

    def search(self, service: str, *, operation: str = "", tags: Mapping[str, str] | None = None) -> list[Any]:
        """Return the traces with a span like this, newest first."""
        ...

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """Return the spans of a trace; none if it is not there."""
        ...


class Jaeger:
    """A Jaeger query service."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api"

    def search(self, service: str, *, operation: str = "", tags: Mapping[str, str] | None = None) -> list[Any]:
        """Return the traces with a span like this, newest first."""
        wanted: dict[str, Any] = {"service": service, "limit": 1000, "lookback": "1h"}
        if operation:
            wanted["operation"] = operation
        if tags:
            wanted["tags"] = json.dumps(dict(tags))
        return _get(f"{self._url}/traces", wanted)["data"]

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """Return the spans of a trace; none if it is not there."""
        try:
            found = _get(f"{self._url}/traces/{trace_id}", {})["data"]
        except Refused:
            return []
        return found[0]["spans"] if found else []


class Loki:
    """A store of logs."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/loki/api/v1"

    def query(self, expr: str, start: float, end: float) -> list[tuple[str, dict[str, str]]]:
        """Return the lines that match, or the values of a metric query, each with all that is known of it.

        Raises:
            Refused: It is no valid expression.
        """
        wanted = {"query": expr, "start": f"{start:.0f}", "end": f"{end:.0f}", "limit": 1000}
        found = _get(f"{self._url}/query_range", wanted)["data"]["result"]
        return [(line, each.get("stream", each.get("metric"))) for each in found for _, line, *_ in each["values"]]


def tags(span: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a span as Jaeger tells them."""
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def _get(url: str, parameters: dict[str, Any]) -> dict[str, Any]:
    request = Request(f"{url}?{urlencode(parameters)}", headers={"Accept": "application/json"})
    try:
        with urlopen(request, timeout=20) as response:
            return json.load(response)
    except HTTPError as error:
        raise Refused(f"{error.code}: {error.read().decode(errors='replace')[:500]} {parameters}") from error
