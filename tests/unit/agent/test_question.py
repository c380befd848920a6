"""The question shows names, times, kinds of failure and which arguments are equal; the answer is bounded and plain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from otel_mcp import SessionState, ToolCall
from otel_mcp.agent.question import question, read, struggle

BEGAN = datetime(2026, 11, 30, 12, tzinfo=UTC)
TOOLS = frozenset({"find_orders"})


def called(at: float, tool: str = "find_orders", digest: str | None = "d1", **facts: Any) -> ToolCall:
    """A call so many seconds after the session began."""
    return ToolCall(
        tool_name=tool,
        request_id=7,
        started_at=BEGAN + timedelta(seconds=at),
        duration=0.25,
        arguments_digest=digest,
        result_bytes=100,
        **facts,
    )


def session(calls: Sequence[ToolCall]) -> SessionState:
    return SessionState(
        session_id="s-secret",
        client_name="client-secret",
        user_agent="agent-secret",
        conversation_id="chat-secret",
        tool_calls=list(calls),
        tool_call_count=len(calls) + 5,
    )


FAILING = [
    called(0, failure="invalid_arguments", error_type="tool_error"),
    called(4.04, digest="d2", failure="invalid_arguments", error_type="tool_error"),
    called(6, failure="tool", error_type="tool_error"),
    called(9, "refund_secret", None, failure="unknown_tool", error_type="tool_error"),
    called(12, "list_shops", "d3"),
]


def test_a_question_has_tools_times_failures_and_equality_alone() -> None:
    calls = [call.model_copy(update={"arguments": {"id": "secret"}, "result": "secret"}) for call in FAILING]

    asked = question(session(calls), "failures", content=False)

    facts = json.loads(asked.user)
    assert facts == {
        "problem": {"name": "failures", "meaning": "calls of one tool fail again and again"},
        "patterns": [],
        "calls_before": 5,
        "calls": [
            {"tool": "find_orders", "at": 0.0, "ms": 250, "ended": "invalid_arguments", "arguments": "A"},
            {"tool": "find_orders", "at": 4.0, "ms": 250, "ended": "invalid_arguments", "arguments": "B"},
            {"tool": "find_orders", "at": 6.0, "ms": 250, "ended": "tool", "arguments": "A"},
            {"tool": "(unknown tool 2)", "at": 9.0, "ms": 250, "ended": "unknown_tool", "arguments": "-"},
            {"tool": "list_shops", "at": 12.0, "ms": 250, "ended": "worked", "arguments": "C"},
        ],
    }
    assert asked.tools == {"find_orders", "list_shops"}
    assert "secret" not in asked.system + asked.user


def test_content_is_shown_newest_first_within_bounds_where_it_may_be() -> None:
    calls = [called(at, arguments={"id": at}, result="r" * 5000) for at in range(50)]

    asked = question(session(calls), "looped", content=True)

    shown = json.loads(asked.user)["calls"]
    assert [call["at"] for call in shown] == [float(at) for at in range(30)]
    assert shown[-1]["said"] == '{"id": 49}'
    assert len(shown[-1]["answered"]) == 400
    assert "said" not in shown[0]
    assert sum(len(call.get("said", "") + call.get("answered", "")) for call in shown) <= 8_000
    assert len(asked.user) < 20_000


def test_a_question_about_a_thousand_large_names_stays_small() -> None:
    calls = [called(at, "tool\n\x1b[31m" + "x" * 5000, f"d{at}") for at in range(1000)]

    asked = question(session(calls), "ping_pong", content=False)

    assert len(asked.user) < 10_000
    assert "\x1b" not in asked.user
    assert len({call["arguments"] for call in json.loads(asked.user)["calls"]}) == 30


@pytest.mark.parametrize(
    ("calls", "problem"),
    [
        ([], None),
        ([called(at, failure="tool", digest=f"d{at}") for at in (0, 100)], None),
        ([called(at, failure="tool", digest=f"d{at}") for at in (0, 100, 200)], "failures"),
        ([called(at, f"tool{at}", failure="tool") for at in (0, 100, 200)], None),
        ([called(at, failure="cancelled", digest=f"d{at}") for at in (0, 100, 200)], None),
        ([called(at) for at in (0, 1, 3, 4, 8, 9)], "looped"),
        ([called(at, failure="tool", error_type="tool_error") for at in (0, 1, 3, 4)], "retry_storm"),
    ],
)
def test_a_session_struggles_by_its_patterns_or_by_failures_of_one_tool(
    calls: list[ToolCall], problem: str | None
) -> None:
    assert struggle(session(calls)) == problem


ANSWER = {"cause": "It guesses.", "change": "Say digits only.", "tool": "find_orders", "confidence": "high"}


@pytest.mark.parametrize(
    "written", [json.dumps(ANSWER), f"```json\n{json.dumps(ANSWER)}\n```", f"Sure: {json.dumps(ANSWER)}"]
)
def test_an_answer_is_read_with_or_without_a_fence(written: str) -> None:
    assert read(written, TOOLS).model_dump() == ANSWER


def test_an_answer_becomes_plain_bounded_lines_about_a_tool_of_the_session() -> None:
    answer = {
        "cause": "first\nERROR forged\x1b[31m \u202eline" + "x" * 5000,
        "change": " y ",
        "tool": "rm -rf",
        "more": 1,
    }

    advice = read(json.dumps(answer), TOOLS)

    assert advice.cause.startswith("first ERROR forged[31m linexxx")
    assert len(advice.cause) == 250
    assert (advice.change, advice.tool, advice.confidence) == ("y", None, "low")


@pytest.mark.parametrize(
    "answer",
    [
        *("", "no", "{}", "[]", "null", '{"cause": "x"}', "}{", '{"a":' * 100_000),
        *('{"cause": "", "change": "x"}', '{"cause": 1, "change": {}}'),
        *(json.dumps(ANSWER | {"confidence": "certain"}), json.dumps(ANSWER | {"change": "\x1b"})),
    ],
)
def test_an_answer_to_something_else_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match="Advice"):
        read(answer, TOOLS)
