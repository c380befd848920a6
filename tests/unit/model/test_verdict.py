"""How a session went, from its calls alone."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from otel_mcp.model.delta import CallRecord
from otel_mcp.model.state import ToolCall
from otel_mcp.model.verdict import Finding, find, judge, visits_regularly

START = 1_790_000_000.0


def call(
    tool: str,
    at: float,
    *,
    arguments: str | None = "a1",
    failure: str | None = None,
    error: str | None = None,
    size: int | None = 200,
    lasts: float = 0.1,
    request_id: int = 1,
) -> CallRecord:
    """Make a call that began `at` seconds after the session did."""
    error = "tool_error" if failure == "tool" else error
    return CallRecord(tool, request_id, START + at, lasts, error, failure, size, arguments)


def every(pause: float, count: int, tool: str = "search", **facts: object) -> list[CallRecord]:
    """Make calls that follow each other in this distance of seconds."""
    return [call(tool, pause * index, **facts) for index in range(count)]  # type: ignore[arg-type]


def at(times: Iterable[float], tool: str = "search", **facts: object) -> list[CallRecord]:
    return [call(tool, time, **facts) for time in times]  # type: ignore[arg-type]


def outcome(calls: list[CallRecord]) -> str:
    return judge(calls, len(calls))


def test_session_without_calls_is_no_call_and_a_probe_is_a_probe() -> None:
    assert judge([], 0) == "no_call"
    assert judge([], 0, probe=True) == "probe"
    assert judge(every(1, 3, failure="tool"), 3, probe=True) == "probe"


def test_four_equal_calls_with_equal_results_are_a_loop() -> None:
    assert outcome(every(3, 3)) == "worked"
    assert outcome(every(3, 4)) == "looped"
    assert find(every(3, 7)) == (Finding("looped", "search", 7),)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        pytest.param([call("search", i, arguments=f"a{i}") for i in range(8)], "worked", id="other arguments"),
        pytest.param([call("search", i, size=200 + 9 * i) for i in range(8)], "worked", id="other results"),
        pytest.param(
            [call("search", i, size=200 + len(str(i + 7)), request_id=i + 7) for i in range(6)],
            "looped",
            id="only the id of the request grows",
        ),
        pytest.param(every(2, 3, size=None), "worked", id="three without sizes"),
        pytest.param(every(2, 4, size=None), "looped", id="four without sizes"),
        pytest.param(every(2, 4, arguments=None), "looped", id="no arguments, equal results"),
        pytest.param(every(2, 9, arguments=None, size=None), "worked", id="nothing is known of them"),
        pytest.param(every(30, 12), "worked", id="a timer asks every half minute"),
        pytest.param(every(10, 12), "worked", id="a timer asks every ten seconds"),
        pytest.param(every(9, 12), "worked", id="a timer asks every nine seconds"),
        pytest.param(at([0, 3, 33, 63]), "worked", id="a timer after one early call"),
        pytest.param(at([0, 30, 60, 90, 93, 123, 153]), "worked", id="a timer with one early call"),
        pytest.param(every(1.35, 9), "looped", id="a fast model at an even pace"),
        pytest.param(at([0, 3, 14, 28]), "looped", id="a model at three uneven pauses"),
        pytest.param(every(7, 9), "looped", id="a slow model at an even pace"),
        pytest.param(at([0, 14, 26, 41, 55, 68]), "worked", id="a model sleeps and asks"),
        pytest.param(at([0, 9, 48, 59, 99]), "looped", id="a slow model at no even pace"),
        pytest.param(every(90, 9), "worked", id="a person asks now and then"),
        pytest.param(at([0, 11.2, 51.4, 62.6, 112.8]), "looped", id="a slower one"),
        pytest.param(every(0, 8), "worked", id="eight at once are one turn"),
        pytest.param(every(0, 8, lasts=0.0), "worked", id="eight at once, in no time"),
    ],
)
def test_repetition_is_a_loop_only_where_nothing_changes_and_no_timer_asks(
    calls: list[CallRecord], expected: str
) -> None:
    assert outcome(calls) == expected


def test_tool_without_arguments_between_others_is_no_loop() -> None:
    calls: list[CallRecord] = []
    for turn in range(6):
        calls += [call("list_files", 8 * turn, arguments=None), call("edit", 8 * turn + 4, arguments=f"e{turn}")]
    assert outcome(calls) == "worked"


def test_same_parallel_calls_again_and_again_are_a_loop() -> None:
    turns = [call(tool, 5 * turn + 0.01 * n) for turn in range(4) for n, tool in enumerate(("read", "search", "stat"))]
    assert find(turns) == (Finding("looped", "read", 4),)
    assert outcome(turns[:9]) == "worked"


def test_cancelled_call_does_not_interrupt_a_loop() -> None:
    calls = every(3, 5)
    calls[2] = replace(calls[2], failure="cancelled", error_type="cancelled", result_bytes=None)
    assert outcome(calls) == "looped"
    assert outcome(calls[:4]) == "worked"


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        pytest.param(every(4, 2, failure="tool"), "gave_up", id="two"),
        pytest.param(every(4, 3, failure="tool"), "retry_storm", id="three with the same arguments"),
        pytest.param(every(40, 3, failure="tool"), "gave_up", id="three, 40 s apart"),
        pytest.param(at([0, 31, 62], failure="exception", error="504", lasts=30.0), "retry_storm", id="time-outs"),
        pytest.param(
            [call("pay", i, arguments=f"a{i}", failure="invalid_arguments") for i in range(4)],
            "gave_up",
            id="four with other arguments",
        ),
        pytest.param(
            [call("pay", 9 * i, arguments=f"a{i}", failure="invalid_arguments") for i in range(5)],
            "retry_storm",
            id="five with other arguments within a minute",
        ),
        pytest.param(
            [call("pay", 20 * i, arguments=f"a{i}", failure="tool") for i in range(5)],
            "gave_up",
            id="five with other arguments, slowly",
        ),
        pytest.param(
            every(2, 4, arguments=None, failure="tool", size=None), "gave_up", id="four, of which little is known"
        ),
        pytest.param(
            [call("save", i, arguments=None, failure="tool", size=200 + i) for i in range(4)],
            "gave_up",
            id="four, too large for a digest, with other results",
        ),
        pytest.param(every(2, 3, arguments=None, failure="tool"), "retry_storm", id="three without arguments"),
        pytest.param(every(0, 6, failure="tool", lasts=0.0), "gave_up", id="six at once, in no time"),
        pytest.param(
            [call("get", 0.01 * i, arguments=f"a{i}", failure="exception", lasts=2.0) for i in range(9)],
            "gave_up",
            id="nine in parallel, none after another",
        ),
        pytest.param(
            [call("get", 5 * turn + 0.01 * i, failure="exception", lasts=2.0) for turn in range(3) for i in range(5)],
            "retry_storm",
            id="three times five in parallel",
        ),
    ],
)
def test_retries_are_a_storm_where_each_follows_a_failure_quickly(calls: list[CallRecord], expected: str) -> None:
    assert outcome(calls) == expected


def test_other_tools_between_do_not_hide_a_retry_storm() -> None:
    calls = every(6, 3, "pay", failure="tool") + [call("read", 6 * i + 3, arguments=f"r{i}") for i in range(3)]
    assert find(calls) == (Finding("retry_storm", "pay", 3),)


def test_success_in_between_ends_a_run_of_failures() -> None:
    calls = every(2, 5, "pay", failure="tool")
    calls[2] = replace(calls[2], failure=None, error_type=None)
    assert outcome(calls) == "gave_up"
    assert outcome(calls[:3]) == "corrected"


def test_two_calls_that_alternate_six_times_are_ping_pong() -> None:
    calls = [call(("open", "close")[i % 2], 3 * i) for i in range(8)]
    assert outcome(calls[:5]) == "worked"
    assert find(calls) == (Finding("ping_pong", "open", 8),)
    assert outcome([replace(each, arguments_digest=str(i)) for i, each in enumerate(calls)]) == "worked"
    assert outcome([replace(each, result_bytes=100 + 5 * i) for i, each in enumerate(calls)]) == "worked"


def test_two_jobs_that_a_timer_watches_are_no_ping_pong() -> None:
    assert outcome([call(("build", "tests")[i % 2], 15 * i) for i in range(10)]) == "worked"


def test_alternation_may_begin_with_the_last_of_other_calls() -> None:
    calls = [
        call(tool, 3 * i)
        for i, tool in enumerate(("list", "open", "list", "open", "close", "open", "close", "open", "close"))
    ]
    assert find(calls) == (Finding("ping_pong", "open", 6),)


def test_longest_of_several_patterns_is_the_outcome() -> None:
    loop, storm = (
        every(2, 4),
        [replace(each, started_at=each.started_at + 500) for each in every(2, 5, "pay", failure="tool")],
    )
    assert find(loop + storm) == (Finding("retry_storm", "pay", 5), Finding("looped", "search", 4))
    assert outcome(loop + storm) == "retry_storm"
    assert outcome(every(2, 6) + storm) == "looped"


def test_what_was_found_before_its_calls_were_forgotten_still_decides() -> None:
    assert judge(every(100, 5), 90, findings=["ping_pong"]) == "ping_pong"
    assert judge(every(100, 5), 90, findings=["ping_pong", "looped", "a later word"]) == "looped"
    assert judge(every(3, 5), 90, findings=["ping_pong"]) == "looped"
    assert judge([], 3) == "worked"


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        pytest.param(
            [call("pay", 0, failure="invalid_arguments", error=None), call("pay", 5, arguments="a2")],
            "corrected",
            id="right at the second attempt",
        ),
        pytest.param([call("pay", 0, failure="tool"), call("read", 5)], "worked", id="left behind"),
        pytest.param([call("read", 0), call("pay", 5, failure="tool")], "gave_up", id="failed at last"),
        pytest.param(
            [call("pay", 0, failure="tool"), call("pay", 5), call("pays", 9, failure="unknown_tool")],
            "gave_up",
            id="corrected once, wrong at last",
        ),
        pytest.param([call("read", 0), call("pay", 5, error="cancelled")], "worked", id="cancelled at last"),
        pytest.param(
            [call("read", 0, failure="tool"), call("pay", 5, error="disconnected")], "gave_up", id="failed, then left"
        ),
        pytest.param(every(5, 3, error="cancelled"), "gave_up", id="all cancelled"),
        pytest.param(
            [call("get", 0, failure="tool"), *[call("get", 0.01 * i, arguments=f"a{i}") for i in range(1, 4)]],
            "worked",
            id="one of four in parallel failed",
        ),
        pytest.param(
            [call("get", 0.01 * i, arguments=f"a{i}", failure="exception") for i in range(5)],
            "gave_up",
            id="all in parallel failed",
        ),
    ],
)
def test_outcome_without_a_pattern_follows_from_failures_and_their_order(
    calls: list[CallRecord], expected: str
) -> None:
    assert outcome(calls) == expected


def test_order_of_arrival_and_form_of_calls_change_nothing() -> None:
    shuffler = random.Random(17)
    stories = [
        every(0, 4, failure="tool") + every(0, 4, "read", lasts=0.0),
        every(3, 6) + every(3, 5, "pay", failure="tool"),
        [call(("open", "close")[i % 2], 3 * i) for i in range(8)] + every(0, 3, "read", arguments=None),
    ]
    for story in stories:
        public = [
            ToolCall(
                tool_name=each.tool_name,
                request_id=each.request_id,
                started_at=datetime.fromtimestamp(each.started_at, UTC),
                duration=each.duration,
                error_type=each.error_type,
                failure=each.failure,
                result_bytes=each.result_bytes,
                arguments_digest=each.arguments_digest,
            )
            for each in story
        ]
        assert find(public) == find(story)
        for _ in range(20):
            shuffled = shuffler.sample(story, len(story))
            assert (find(shuffled), judge(shuffled, 99)) == (find(story), judge(story, 99))


@pytest.mark.parametrize(
    ("starts", "regular"),
    [
        pytest.param([0, 60, 120, 180, 240], True, id="every minute"),
        pytest.param([0, 60, 120, 180], False, id="four visits"),
        pytest.param([0, 270, 590, 880, 1190], True, id="every five minutes, with jitter"),
        pytest.param([0, 30, 60, 120, 150, 180, 210, 240], True, id="after a visit that was missed"),
        pytest.param([0, 1, 60, 61, 120, 121, 180, 182, 240], True, id="two sessions at each visit"),
        pytest.param([0, 5000, 9000, 9060, 9120, 9180, 9240], True, id="after a pause of the monitor"),
        pytest.param([0, 10, 20, 30, 40], False, id="reconnects in vain"),
        pytest.param([0, 3600, 7200, 10800], False, id="hourly"),
        pytest.param([0, 60, 120, 180, 270], False, id="at no even pace"),
        pytest.param([0, 60, 140, 240, 340], False, id="a developer who restarts a client"),
        pytest.param([0, 700, 760, 900, 1700], False, id="a person with an editor"),
        pytest.param([], False, id="never"),
    ],
)
def test_visits_are_regular_where_a_timer_makes_them(starts: list[float], *, regular: bool) -> None:
    assert visits_regularly([START + start for start in reversed(starts)]) is regular


def test_rounds_of_a_call_are_no_repetition_and_no_pause() -> None:
    long_waits = [replace(each, rounds=2, input_wait=70.0) for each in every(75, 4)]
    assert outcome(long_waits) == "looped"  # Five seconds lie between them.
    assert outcome([replace(each, waiting="b" * 16) for each in every(5, 4)]) == "gave_up"
    assert outcome([*every(5, 1, "list"), replace(call("refund", 9), waiting="b" * 16)]) == "worked"
