"""The text of documents: whatever a call carries, it can be read back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from otel_mcp.model.delta import FACTS, SessionFacts
from otel_mcp.model.state import SessionState
from otel_mcp.store import document as text
from tests.support.stores import EPOCH, call


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (EPOCH, "2026-09-21T14:13:20.000000Z"),
        (EPOCH + 0.000001, "2026-09-21T14:13:20.000001Z"),
        (EPOCH + 0.9999999, "2026-09-21T14:13:21.000000Z"),
        (-5.0, "1970-01-01T00:00:00.000000Z"),
        (math.nan, "1970-01-01T00:00:00.000000Z"),
        (1e300, "9999-12-31T23:59:59.000000Z"),
    ],
)
def test_instants_are_iso_text_of_one_length(seconds: float, expected: str) -> None:
    assert text.iso(text.micros(seconds)) == expected


def test_a_call_without_content_has_only_known_fields() -> None:
    assert json.loads(text.call(call(0))) == {
        "tool_name": "add",
        "request_id": 0,
        "started_at": "2026-09-21T14:13:20.000000Z",
        "duration": 0.25,
    }


@pytest.mark.parametrize(
    ("request_id", "expected"),
    [("id", "id"), ("", ""), (-7, -7), (10**400, "_OTHER"), (True, 1), ("x" * 9999, "x" * 1024)],
)
def test_request_ids_of_any_size_are_kept_or_named(request_id: Any, expected: Any) -> None:
    record = call()
    record.request_id = request_id
    assert json.loads(text.call(record))["request_id"] == expected


@pytest.mark.parametrize("duration", [math.nan, math.inf, -math.inf])
def test_a_duration_that_is_no_number_is_none(duration: float) -> None:
    record = call()
    record.duration = duration
    assert json.loads(text.call(record))["duration"] == 0.0


def nested(depth: int) -> list[Any]:
    return [] if depth == 0 else [nested(depth - 1)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, "x", None, 1.5]}, {"a": [1, "x", None, 1.5]}),
        ([math.nan, math.inf], [None, None]),
        ("\ud800\udfff", "??"),
        ({"\ud800": math.nan}, {"?": None}),
        (2**70, 2**70),
        (nested(500), None),
        ("x" * 70_000, '"' + "x" * 65_535),
    ],
)
def test_content_can_be_read_back(value: Any, expected: Any) -> None:
    written = text.content(value)
    assert "\n" not in written
    assert json.loads(text.utf8(written)) == expected


def test_content_that_is_no_json_is_named_or_left_out() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert json.loads(text.content(object())).startswith("<object object")
    assert json.loads(text.content(loop)) == ["..."]


def test_a_fact_of_a_session_is_a_field_of_its_document() -> None:
    known = SessionFacts("abc", 1.0, 2.0)
    for fact in FACTS:
        setattr(known, fact.name, fact.name * 1000)

    state = SessionState.model_validate_json(text.facts(known, "svc"))

    assert {fact.name: getattr(state, fact.name) for fact in FACTS} == text.known(known)
    assert SessionFacts.of(state, 1.0, 2.0).known() == text.known(known)
    assert not state.model_extra
