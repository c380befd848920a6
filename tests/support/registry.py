"""Holds what was emitted against the committed semantic-convention registry, as Weaver's live-check would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.providers import Metric

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "registry"
OWN: Final = "otel_mcp."
Attributes = Mapping[str, Any]
Registry = dict[str, Any]


@dataclass
class Emitted:
    """Everything that a run exported."""

    metrics: dict[str, Metric] = field(default_factory=dict[str, Metric])
    messages: list[Attributes] = field(default_factory=list[Attributes])
    sessions: list[Attributes] = field(default_factory=list[Attributes])
    beneath: list[Attributes] = field(default_factory=list[Attributes])
    http: list[Attributes] = field(default_factory=list[Attributes])
    records: list[Attributes] = field(default_factory=list[Attributes])
    events: list[tuple[str, Attributes]] = field(default_factory=list[tuple[str, Attributes]])

    def points(self) -> Iterator[tuple[str, Attributes]]:
        """Yield the attributes of each point of each metric."""
        for name, metric in self.metrics.items():
            yield from ((name, dict(attributes)) for attributes in metric.points)

    def carried(self) -> Iterator[Attributes]:
        """Yield the attributes of everything."""
        yield from (*self.messages, *self.sessions, *self.beneath, *self.http, *self.records)
        yield from (attributes for _, attributes in (*self.events, *self.points()))


def load() -> Registry:
    """Return the registry, all files of it."""
    merged: Registry = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem != "manifest":
            assert content.pop("file_format") == "definition/2"
            merged |= content
    return merged


def attributes_are_defined(registry: Registry, emitted: Emitted) -> Iterator[str]:
    """Each name of ours has a definition, and values of its type; each definition is of something."""
    defined = {each["key"]: each["type"] for each in registry["attributes"]}
    seen: set[str] = set()
    for attributes in emitted.carried():
        for name, value in attributes.items():
            if not name.startswith(OWN):
                continue
            seen.add(name)
            if name not in defined:
                yield f"{name} is not defined"
            elif not _is_of(defined[name], value):
                yield f"{name} is {value!r}"
    yield from (f"{name} is defined, and nothing carries it" for name in sorted(defined.keys() - seen))


def metrics_are_defined(registry: Registry, emitted: Emitted) -> Iterator[str]:
    """Each metric is defined with its unit and kind, and its points carry what it lists."""
    defined = {each["name"]: (each["instrument"], each["unit"]) for each in registry["metrics"]}
    made = {name: (each.kind.lower(), each.unit) for name, each in emitted.metrics.items()}
    for name in sorted(made.keys() | defined.keys()):
        if made.get(name) != defined.get(name):
            yield f"{name} is {made.get(name)}, and defined as {defined.get(name)}"
    listed = {each["name"]: each["attributes"] for each in registry["metrics"]}
    for name, attributes in emitted.points():
        yield from _carries(name, listed.get(name, ()), attributes)


def events_are_defined(registry: Registry, emitted: Emitted) -> Iterator[str]:
    """Each event is one of the conventions', or our own, with what it lists."""
    both = (*registry["event_refinements"], *registry["events"])
    listed = {each.get("ref") or each["name"]: each["attributes"] for each in both}
    if listed.keys() != {name for name, _ in emitted.events}:
        yield f"events are {sorted({name for name, _ in emitted.events})}"
    for name, attributes in emitted.events:
        yield from _carries(name, listed.get(name, ()), attributes)


def spans_are_defined(registry: Registry, emitted: Emitted) -> Iterator[str]:
    """Each span, and each log record of others, carries what its group lists."""
    groups = {each["id"]: each["attributes"] for each in registry["attribute_groups"]}
    groups |= {each["type"]: each["attributes"] for each in registry["spans"]}
    found = {
        "otel_mcp.message": emitted.messages,
        "otel_mcp.session": emitted.sessions,
        "otel_mcp.beneath": emitted.beneath,
        "otel_mcp.http": emitted.http,
        "otel_mcp.logs": emitted.records,
    }
    for name in groups.keys() | found.keys():
        if not found.get(name):
            yield f"there are no spans of {name}"
        for attributes in found.get(name, ()):
            yield from _carries(name, groups.get(name, ()), attributes)


def references_lead_somewhere(registry: Registry, _: Emitted) -> Iterator[str]:
    """What is referred to is defined here, or is not of ours."""
    defined = {each["key"] for each in registry["attributes"]} | {each["id"] for each in registry["attribute_groups"]}
    for section in ("metrics", "events", "event_refinements", "span_refinements", "spans", "attribute_groups"):
        for each in (attribute for signal in registry[section] for attribute in signal["attributes"]):
            name = each.get("ref") or each["ref_group"]
            if name.startswith(OWN) and name not in defined:
                yield f"there is no {name}"


RULES: Final[tuple[Callable[[Registry, Emitted], Iterator[str]], ...]] = (
    attributes_are_defined,
    metrics_are_defined,
    events_are_defined,
    spans_are_defined,
    references_lead_somewhere,
)


def problems(registry: Registry, emitted: Emitted) -> set[str]:
    """Return everything in which the two differ."""
    return {problem for rule in RULES for problem in rule(registry, emitted)}


def _is_of(kind: Any, value: Any) -> bool:
    if isinstance(kind, dict):
        return value in {member["value"] for member in kind["members"]}
    if kind == "string[]":
        return bool(value) and all(type(each) is str for each in value)
    return type(value) is {"string": str, "int": int, "double": float}[kind]


def _carries(what: str, listed: Iterable[dict[str, Any]], attributes: Attributes) -> Iterator[str]:
    levels = {each["ref"]: each["requirement_level"] for each in listed}
    required = {name for name, level in levels.items() if level == "required"}
    if missing := required - attributes.keys():
        yield f"{what} lacks {sorted(missing)}"
    if unknown := attributes.keys() - levels.keys():
        yield f"{what} carries {sorted(unknown)}"
