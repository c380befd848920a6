"""Thousands of random flushes: always a valid document, true counters, the newest calls; memory agrees."""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from otel_mcp.model.delta import CallRecord, EndedSession, Flush, SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.state import SessionState
from otel_mcp.store.base import ProducerId
from otel_mcp.store.memory import MemoryStore
from otel_mcp.store.redis.store import RedisStore
from tests.support.stores import Server, settings

pytestmark = pytest.mark.anyio

TEXTS = (
    "add",
    "",
    '"',
    "\\",
    '],"last_activity":"',
    ',"created_at":"',
    "\n",
    ",\n",
    "\x00",
    "\ud800",
    "é\u2028😀",
    "}{",
)
CAP = 5
USERS = ("a" * 32, "a" * 32, "a" * 32, "b" * 32, None)


@pytest.fixture
async def store(server: Server, process: ProducerId) -> AsyncIterator[RedisStore]:
    server.client().flushall()
    store = RedisStore(settings(server.patient_url, max_tool_calls=CAP), process)
    yield store
    await store.aclose()


def text(chance: random.Random) -> str:
    return "".join(chance.choice(TEXTS) for _ in range(chance.randint(0, 6)))


def random_facts(chance: random.Random, session_id: str, at: float) -> SessionFacts:
    known: dict[str, Any] = {
        name: text(chance) for name in ("user_agent", "client_name", "source", "previous_id") if chance.random() < 0.3
    }
    return SessionFacts(session_id, at, 3600.0, **known)


def random_delta(chance: random.Random, session_id: str, at: float, first: int) -> SessionDelta:
    calls = chance.choice((0, 0, 1, 1, 1, 2, 3, CAP, CAP + 1, 2 * CAP, 64))
    records = [
        CallRecord(text(chance), first + number, at, chance.random(), error_type=text(chance) or None)
        for number in range(calls)
    ]
    content: dict[str, Any] = {text(chance): [text(chance), None, {}, []]}
    for record in records:
        record.arguments = content if chance.random() < 0.2 else None
    return SessionDelta(
        random_facts(chance, session_id, at),
        at,
        requests=calls + chance.randint(0, 2),
        errors=chance.randint(0, calls),
        call_count=calls,
        calls=records,
        context=chance.randrange(2**40),
        listed=chance.randrange(2**20),
    )


async def test_every_flush_leaves_a_true_document(server: Server, store: RedisStore) -> None:
    chance, process, raw = random.Random(7), ProducerId(), server.client()
    others = [ProducerId() for _ in range(4)]
    truth: dict[str, list[int]] = {}
    counts: dict[str, list[int]] = {}
    now = time.time()
    for step in range(1200):
        session_id = f"s{chance.randrange(6)}"
        if chance.random() < 0.01:
            raw.delete(f"mcp_session:{session_id}")
            truth[session_id] = []
        if chance.random() < 0.03:
            state = SessionState(session_id=session_id, attributes={text(chance): text(chance)})
            await store.save(state)
        sender = chance.choice([process, *others])
        calls, totals = truth.setdefault(session_id, []), counts.setdefault(session_id, [0] * 5)
        change = random_delta(chance, session_id, now + step / 1000 - chance.random(), totals[0])
        sent = Flush(change, sender.token, sender.next_sequence())
        calls += [int(str(record.request_id)) for record in change.calls]
        totals[0] += change.call_count
        totals[1] += change.errors
        totals[2] += change.requests
        totals[3] += change.context
        totals[4] += change.listed

        await store.apply([sent])
        if chance.random() < 0.1:
            assert (await store.apply([sent]))[0].duplicate

        document = raw.get(f"mcp_session:{session_id}")
        assert isinstance(document, bytes)
        state = SessionState.model_validate_json(document)
        json.loads(document)
        counted = [state.tool_call_count, state.error_count, state.request_count]
        assert [*counted, state.context_bytes, state.catalogue_bytes] == totals
        kept = [made.request_id for made in state.tool_calls]
        assert kept == calls[-len(kept) :] if kept else not calls
        assert min(len(calls), CAP) <= len(kept) <= 2 * CAP
        assert state.created_at is not None
        assert state.last_activity is not None
        assert state.created_at <= state.last_activity


async def test_memory_keeps_what_redis_keeps(store: RedisStore, process: ProducerId) -> None:
    chance, now = random.Random(11), float(int(time.time()))
    memory = MemoryStore(settings(max_tool_calls=CAP))
    senders = [process, ProducerId(), ProducerId()]
    reported = 0
    sent: list[Flush] = []
    clock = now - 3000
    for step in range(900):
        clock = round(clock + chance.random() * 2, 3)
        session_id = f"s{chance.randrange(5)}"
        chosen = chance.random()
        if chosen < 0.03:
            given = {"session_id": session_id, "user_agent": text(chance), "attributes": {"a": text(chance)}}
            state = SessionState.model_validate({**given, "created_at": clock, "last_activity": clock})
            assert same(await memory.save(state), await store.save(state))
        elif chosen < 0.04:
            assert await memory.delete(session_id) == await store.delete(session_id)
        elif chosen < 0.08 and sent:
            again = chance.choice(sent[-3:])
            assert same((await memory.apply([again]))[0], (await store.apply([again]))[0])
        else:
            change = random_delta(chance, session_id, clock, step * 100)
            change.facts.limit = 20.0
            change.facts.principal = chance.choice(USERS)
            change.facts.opened = chance.random() < 0.1
            change.facts.visitor = chance.choice(USERS)
            change.facts.lasting = chance.random() < 0.05
            sender = chance.choice(senders)
            if chance.random() < 0.1:
                change.ended = (clock, "client_delete")
                sender = process
            flush = Flush(change, sender.token, sender.next_sequence())
            sent.append(flush)
            assert same((await memory.apply([flush]))[0], (await store.apply([flush]))[0])
        if chance.random() < 0.3:
            held, kept = [await each.claim_held([session_id], time.time()) for each in (memory, store)]
            assert [rounded(end) for end in held] == [rounded(end) for end in kept]
            for each, ends in ((memory, held), (store, kept)):
                for end in ends:
                    end.outcome = "looped"
                await each.ack_ends(ends)
            reported += len(held)
        assert await memory.load(session_id) == await store.load(session_id)
        # Memory has the time that passes here as well.
        known, shared = await memory.describe(session_id), await store.describe(session_id)
        assert (known.principal, known.opened) == (shared.principal, shared.opened)
        if known.ended and shared.ended:
            assert known.may_go_on == shared.may_go_on
    assert reported > 5


def same(one: WriteResult, other: WriteResult) -> bool:
    """Whether two stores answered alike, but for rounding and what only a shared store tells."""
    for answer in (one, other):
        answer.resumed, answer.waits = False, list(answer.waits)
        if answer.expired is not None:
            answer.expired = rounded(answer.expired)
    return one == other


def rounded(ended: EndedSession) -> EndedSession:
    """To milliseconds."""
    at_start = replace(ended.facts, created_at=round(ended.facts.created_at, 3))
    return replace(ended, facts=at_start, last_activity=round(ended.last_activity, 3))
