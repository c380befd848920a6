"""Five hundred sessions with the outcome that their authors had in mind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random

import pytest

from otel_mcp.identity.hosts import synthetic_type
from otel_mcp.model.delta import CallRecord, Flush, SessionDelta
from otel_mcp.model.state import ToolCall
from otel_mcp.model.verdict import find, judge, visits_regularly
from otel_mcp.store.base import ProducerId
from otel_mcp.store.memory import MemoryStore
from tests.support.agents import START, STORIES, Behaviour, Story, generated, tell
from tests.support.stores import Clock, facts, settings
from tests.support.waiting import at_once

WINDOW = 25


def arrivals(story: Story, random: Random) -> Iterator[Flush]:
    """Write a session in flushes of two replicas, one of which restarts; each keeps its own order."""
    replicas = [[ProducerId(), ProducerId()], [ProducerId()]]
    waiting: list[list[Flush]] = [[], []]
    for number, call in enumerate(story.calls):
        replica = random.randrange(2)
        lives = replicas[replica]
        process = lives[min(2 * number // len(story.calls), len(lives) - 1)]
        last = waiting[replica][-1] if waiting[replica] else None
        if last is not None and last.token == process.token and random.random() < 0.5:
            last.delta.calls.append(call)
            last.delta.call_count += 1
            continue
        first = SessionDelta(facts(at=START), call.started_at, requests=1, call_count=1, calls=[call])
        waiting[replica].append(Flush(first, process.token, process.next_sequence()))
    while any(waiting):
        yield random.choice([queue for queue in waiting if queue]).pop(0)


def outcome_of(story: Story, calls: Sequence[CallRecord | ToolCall] | None = None) -> str:
    """Judge a session as at its end: the window has forgotten calls; what was found while it ran stands."""
    told = story.calls if calls is None else calls
    findings = {each.name for end in range(1, len(told)) for each in find(told[max(0, end - WINDOW) : end])}
    probe = synthetic_type(story.client, None) is not None or (not told and visits_regularly(story.visits))
    return judge(told[-WINDOW:], len(told), findings=findings, probe=probe)


@pytest.mark.parametrize(("label", "behaviour"), STORIES)
def test_outcome_is_the_same_in_every_order_of_replicas_and_restart(label: str, behaviour: Behaviour) -> None:
    story = tell(label, behaviour, 1)
    orders: set[tuple[object, ...]] = set()
    for seed in range(40):
        store = MemoryStore(settings(), clock=Clock())
        for flush in arrivals(story, Random(seed)):
            at_once(store.apply([flush]))
        state = at_once(store.load("abc"))
        calls = state.tool_calls if state is not None else []
        orders.add(tuple(call.request_id for call in calls))
        assert outcome_of(story, calls) == label
    assert len(orders) > 20 or len(story.calls) < 4


def test_outcomes_are_those_that_authors_of_500_sessions_had_in_mind() -> None:
    seen: Counter[tuple[str, str]] = Counter()
    wrong: list[tuple[str, str, str]] = []
    for story in generated(500):
        outcome = outcome_of(story)
        seen[story.label, outcome] += 1
        if outcome != story.label:
            wrong.append((story.kind, story.label, outcome))
    for label in {label for label, _ in seen}:
        right = seen[label, label]
        precision = right / sum(count for (_, outcome), count in seen.items() if outcome == label)
        recall = right / sum(count for (meant, _), count in seen.items() if meant == label)
        assert min(precision, recall) >= 0.95, (label, precision, recall, Counter(wrong))
    assert sum(seen.values()) == 500
    assert {label for label, _ in seen} == {
        "worked", "corrected", "looped", "retry_storm", "ping_pong", "gave_up", "no_call", "probe"
    }  # fmt: skip
