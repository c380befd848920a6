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


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("y" * 70_000, "y" * 65_536),
        (["y" * 70_000], '["' + "y" * 65_534),
        (nested(500), None),
    ],
    ids=["text", "list", "no JSON"],
)
@pytest.mark.parametrize("extra", [False, True], ids=["attribute", "extra field"])
def test_an_attribute_is_clipped_by_itself_with_one_warning(
    value: Any, expected: Any, extra: bool, caplog: pytest.LogCaptureFixture
) -> None:
    text._warn_once.cache_clear()  # pyright: ignore[reportPrivateUsage]
    given = {"small": 1, "x": value, "after": [None, "ü"]}
    for _ in range(3):
        written = text.attributes({}, given) if extra else text.attributes(given, None)
        read = json.loads("{" + written[1:] + "}")
        given = read if extra else read["attributes"]
        given.pop("attributes", None)
        assert given == {"small": 1, "x": expected, "after": [None, "ü"]}
    assert len([each for each in caplog.records if "attribute" in each.getMessage()]) == 1


def test_attributes_of_the_longest_kind_are_kept_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    text._warn_once.cache_clear()  # pyright: ignore[reportPrivateUsage]
    given = {f"key{n}": "y" * 65_536 for n in range(3)} | {"none": None}

    assert json.loads("{" + text.attributes(given, None)[1:] + "}") == {"attributes": given}
    assert not caplog.records


@pytest.mark.parametrize(("values", "expected"), [([1], {}), ({1: 2}, {"1": 2}), ({"\ud800": 3}, {"?": 3})])
def test_attributes_of_any_kind_can_be_read_back(values: Any, expected: Any) -> None:
    assert json.loads(text.utf8("{" + text.attributes(values, None)[1:] + "}")) == {"attributes": expected}


def test_a_fact_of_a_session_is_a_field_of_its_document() -> None:
    known = SessionFacts("abc", 1.0, 2.0)
    for fact in FACTS:
        setattr(known, fact.name, fact.name * 1000)

    state = SessionState.model_validate_json(text.facts(known, "svc"))

    assert {fact.name: getattr(state, fact.name) for fact in FACTS} == text.known(known)
    assert SessionFacts.of(state, 1.0, 2.0).known() == text.known(known)
    assert not state.model_extra
