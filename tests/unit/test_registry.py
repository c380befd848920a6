"""What is held against the semantic-convention registry can fail: each kind of difference is found."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from tests.support.providers import Metric
from tests.support.registry import Emitted, Registry, problems

OWN = {"ref": "otel_mcp.why", "requirement_level": "required"}
METHOD = {"ref": "mcp.method.name", "requirement_level": {"conditionally_required": "where known"}}
REGISTRY: Registry = {
    "attributes": [
        {"key": "otel_mcp.why", "type": {"members": [{"value": "full"}]}},
        {"key": "otel_mcp.number", "type": "int"},
    ],
    "metrics": [{"name": "otel_mcp.lost", "instrument": "counter", "unit": "{call}", "attributes": [OWN, METHOD]}],
    "event_refinements": [{"ref": "session.end", "attributes": [OWN]}],
    "events": [],
    "attribute_groups": [
        {"id": "otel_mcp.message", "attributes": [METHOD]},
        {"id": "otel_mcp.beneath", "attributes": [METHOD | {"ref": "otel_mcp.number"}]},
        {"id": "otel_mcp.http", "attributes": [METHOD | {"ref": "url.path"}]},
        {"id": "otel_mcp.logs", "attributes": [METHOD | {"ref": "session.id"}]},
    ],
    "span_refinements": [{"id": "otel_mcp.server", "attributes": [{"ref_group": "otel_mcp.message"}]}],
    "spans": [{"type": "otel_mcp.session", "attributes": [OWN]}],
}


def _emitted() -> Emitted:
    why = {"otel_mcp.why": "full"}
    return Emitted(
        metrics={"otel_mcp.lost": Metric("{call}", "Counter", {frozenset(why.items()): 1})},
        messages=[{"mcp.method.name": "ping"}],
        sessions=[why],
        beneath=[{"otel_mcp.number": 1}],
        http=[{"url.path": "/mcp"}],
        records=[{"session.id": "one"}],
        events=[("session.end", why)],
    )


def test_what_is_as_defined_is_no_problem() -> None:
    assert problems(REGISTRY, _emitted()) == set()


MISTAKES: dict[str, tuple[Callable[[Registry, Emitted], object], str]] = {
    "value": (lambda _, e: e.sessions.append({"otel_mcp.why": "tired"}), "otel_mcp.why is 'tired'"),
    "type": (lambda _, e: e.beneath.append({"otel_mcp.number": "1"}), "otel_mcp.number is '1'"),
    "attribute": (lambda _, e: e.beneath.append({"otel_mcp.new": 1}), "otel_mcp.new is not defined"),
    "attribute of nothing": (
        lambda r, _: r["attributes"].append({"key": "otel_mcp.old", "type": "string"}),
        "otel_mcp.old is defined, and nothing carries it",
    ),
    "unit": (
        lambda r, _: r["metrics"][0].update(unit="s"),
        "otel_mcp.lost is ('counter', '{call}'), and defined as ('counter', 's')",
    ),
    "metric of nothing": (
        lambda _, e: e.metrics.pop("otel_mcp.lost"),
        "otel_mcp.lost is None, and defined as ('counter', '{call}')",
    ),
    "required": (lambda _, e: e.events.append(("session.end", {})), "session.end lacks ['otel_mcp.why']"),
    "carried": (lambda _, e: e.messages.append({"session.id": "1"}), "otel_mcp.message carries ['session.id']"),
    "no span": (lambda _, e: e.http.clear(), "there are no spans of otel_mcp.http"),
    "event": (lambda _, e: e.events.clear(), "events are []"),
    "reference": (
        lambda r, _: r["spans"][0]["attributes"].append(OWN | {"ref": "otel_mcp.no"}),
        "there is no otel_mcp.no",
    ),
    "group": (
        lambda r, _: r["span_refinements"][0]["attributes"].append({"ref_group": "otel_mcp.gone"}),
        "there is no otel_mcp.gone",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_difference_is_found(mistake: str) -> None:
    spoil, complaint = MISTAKES[mistake]
    registry, emitted = copy.deepcopy(REGISTRY), _emitted()
    spoil(registry, emitted)
    assert complaint in problems(registry, emitted)
