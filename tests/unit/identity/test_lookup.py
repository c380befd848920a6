"""How a claim becomes a session: known, shared, succeeded, bound to its user, limited."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import pytest

from otel_mcp.hashing import KeyedHashes
from otel_mcp.identity import reconcile
from otel_mcp.identity.claims import Claims
from otel_mcp.identity.lookup import Decision, Lookup, decide
from otel_mcp.identity.reconcile import Reconciler
from otel_mcp.identity.registry import Registry
from otel_mcp.model.call import Exchange
from otel_mcp.model.delta import Known, SessionFacts
from otel_mcp.model.session import NOBODY, Claim, Principal, Session
from otel_mcp.settings import load
from otel_mcp.wire.jsonrpc import Message

pytestmark = pytest.mark.anyio

ANN, BOB = Principal("ann", "ann"), Principal("bob", "bob")
TOKEN = Principal("token")
HOUR = 3600.0


@dataclass
class Store:
    """The shared store, as all replicas see it; a `down` one answers nothing."""

    documents: dict[str, Known] = field(default_factory=dict[str, Known])
    agreed: dict[str, str] = field(default_factory=dict[str, str])
    down: bool = False
    asked: Counter[str] = field(default_factory=Counter[str])

    async def describe(self, session_id: str, asker: object = None) -> Known | None:
        self.asked["describe"] += 1
        await anyio.lowlevel.checkpoint()
        if self.down:
            return None
        known = self.documents.get(session_id, Known(exists=False))
        return replace(known, successor=self.agreed.get(f"{session_id}:next"))

    async def get(self, key: str, asker: object = None) -> str | None:
        self.asked["get"] += 1
        return None if self.down else self.agreed.get(key)

    async def set_value(self, key: str, value: str, ttl: float) -> None:
        self.agreed[key] = value

    async def get_or_set(self, key: str, candidate: str, ttl: float, asker: object = None) -> str:
        self.asked["get_or_set"] += 1
        await anyio.lowlevel.checkpoint()
        return candidate if self.down else self.agreed.setdefault(key, candidate)

    async def get_or_set_successor(
        self, old_id: str, candidate: str, user: str | None = None, asker: object = None
    ) -> str:
        self.asked["get_or_set_successor"] += 1
        await anyio.lowlevel.checkpoint()
        return candidate if self.down else self.agreed.setdefault(f"{old_id}:next", candidate)


class Replica:
    """One process: what it knows, its clock, and the claims that it did not follow."""

    def __init__(self, store: Store, **settings: Any) -> None:
        self.now = time.time()
        self.rejected: list[str] = []
        self.hashes = make_hashes()
        given = load(**settings)
        self.registry = Registry(given, self.rejected.append, lambda: self.now)
        reconciler = Reconciler(given, self.registry, store, self.hashes)
        self.lookup = Lookup(given, self.registry, store, self.hashes, reconciler)
        self._claims = Claims(given, self.hashes)

    def minted(self, session_id: str) -> Claim:
        """The claim to an id that looks like one of ours."""
        call = Exchange("POST", "/", {}, transport_id=session_id).add(Message("tools/call", 1, {}))
        claim = self._claims.of(call)
        assert claim is not None
        return claim

    def open(self, session_id: str) -> Session:
        session = self.lookup.open(session_id, NOBODY)
        assert session is not None
        return session

    async def resolve(self, claim: Claim, owned: bool | None = False) -> Session:
        session = await self.lookup.resolve(claim, owned=owned)
        assert session is not None
        return session


def make_hashes(secret: bytes = b"secret") -> KeyedHashes:
    hashes = KeyedHashes()
    hashes.learn(secret)
    return hashes


@pytest.fixture
def store() -> Store:
    return Store()


def header(key: str, principal: Principal = NOBODY, *, transport: bool = True) -> Claim:
    return Claim("header", key, transport, principal=principal)


def inferred(key: str = "f" * 32, source: str = "inferred", principal: Principal = TOKEN) -> Claim:
    return Claim(source, key, principal=principal)


def conversation(key: str = "c_" + "0" * 32, principal: Principal = NOBODY) -> Claim:
    return Claim("conversation", key, conversation_id="v1/abc", principal=principal, derived=True)


NOW = 1000.0
LIVE = SessionFacts("abc", 5.0, HOUR)
OWN = Claim("header", "abc", transport=True, principal=ANN)
NAMED = Claim("header", "abc", principal=ANN)


@pytest.mark.parametrize(
    ("claim", "known", "owned", "decision"),
    [
        (OWN, Known(True, facts=LIVE), False, Decision.JOIN),
        (OWN, Known(True, facts=LIVE, principal="ann"), False, Decision.JOIN),
        (OWN, Known(True, facts=LIVE, principal="bob"), True, Decision.SEPARATE),
        (OWN, Known(False, ended=True, principal="bob"), False, Decision.SEPARATE),
        (conversation(), Known(False, principal="bob"), False, Decision.SEPARATE),
        (OWN, Known(True, facts=LIVE, successor="next"), False, Decision.CONTINUE),
        (OWN, Known(True, facts=LIVE, successor="next"), True, Decision.JOIN),
        (conversation(), Known(False, successor="next"), False, Decision.BEGIN),
        (OWN, Known(False), True, Decision.BEGIN),
        (OWN, Known(False, ended=True), True, Decision.BEGIN),
        (NAMED, Known(False), True, Decision.CONTINUE),
        (OWN, Known(False), None, Decision.BEGIN),
        (OWN, Known(False, ended=True), None, Decision.CONTINUE),
        (NAMED, Known(False), None, Decision.CONTINUE),
        (OWN, Known(False), False, Decision.CONTINUE),
        (NAMED, None, False, Decision.BEGIN),
        (replace(OWN, forged=True), None, False, Decision.CONTINUE),
        (replace(OWN, forged=True), Known(False), True, Decision.BEGIN),
        (replace(OWN, fresh_until=NOW + 1), Known(False), False, Decision.BEGIN),
        (replace(OWN, fresh_until=NOW - 1), Known(False), False, Decision.CONTINUE),
        (replace(OWN, fresh_until=NOW + 1), Known(False, ended=True), False, Decision.CONTINUE),
        (conversation(), Known(False, ended=True), False, Decision.BEGIN),
    ],
)
def test_a_claim_is_decided_by_what_the_store_knows(
    claim: Claim, known: Known | None, owned: bool | None, decision: Decision
) -> None:
    assert decide(claim, known, owned, NOW) is decision


async def test_an_id_that_the_protocol_gave_out_is_the_session(store: Store) -> None:
    here = Replica(store)

    opened = here.open("abc")
    found = await here.resolve(header("abc"), owned=True)

    assert opened is found
    assert (found.id, found.source, found.facts.created_at, found.facts.limit) == ("abc", "header", here.now, HOUR)
    assert found.facts.previous_id is None
    assert store.asked == Counter()


async def test_an_id_that_the_server_owns_is_the_session_on_another_replica(store: Store) -> None:
    here = Replica(store)

    found = [await here.resolve(header("abc"), owned=True) for _ in range(3)]

    assert {session.id for session in found} == {"abc"}
    assert store.asked == Counter(describe=1)


async def test_a_known_id_is_reused_without_asking_again(store: Store) -> None:
    store.documents["abc"] = Known(True, facts=SessionFacts("abc", 5.0, HOUR, client_name="c", source="header"))
    here = Replica(store)

    first = await here.resolve(header("abc"))
    second = await here.resolve(header("abc"))

    assert first is second
    assert first.facts == SessionFacts("abc", 5.0, HOUR, client_name="c", source="header")
    assert store.asked == Counter(describe=1)


async def test_an_unknown_id_has_one_successor_on_all_replicas(store: Store) -> None:
    here, there = Replica(store), Replica(store)

    first = await here.resolve(header("lost"))
    again = await here.resolve(header("lost"))
    elsewhere = await there.resolve(header("lost"))

    assert first is again
    assert first.id == elsewhere.id != "lost"
    assert first.id.startswith("om1.")
    assert first.facts.previous_id == elsewhere.facts.previous_id == "lost"


async def test_requests_that_come_together_share_the_successor_of_an_unknown_id(store: Store) -> None:
    here = Replica(store)
    found: list[Session] = []

    async def one() -> None:
        found.append(await here.resolve(header("lost")))

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(one)

    assert len({session.id for session in found}) == 1
    assert len({id(session) for session in found}) == 1


async def test_concurrent_requests_share_a_successor_when_the_store_fails(store: Store) -> None:
    here = Replica(store)
    found: list[Session] = []

    async def failing(old_id: str, candidate: str, user: str | None = None, asker: object = None) -> str:
        await anyio.lowlevel.checkpoint()
        return candidate

    store.get_or_set_successor = failing  # type: ignore[method-assign]

    async def one() -> None:
        found.append(await here.resolve(header("lost")))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(one)

    assert len({session.id for session in found}) == 1


async def test_an_ended_id_is_continued_by_another_session(store: Store) -> None:
    store.documents["abc"] = Known(False, ended=True)
    here = Replica(store)

    found = await here.resolve(header("abc"))

    assert found.id != "abc"
    assert found.facts.previous_id == "abc"


async def test_the_successor_of_an_id_of_ours_is_an_id_of_ours(store: Store) -> None:
    here = Replica(store)
    old = here.hashes.mint()
    store.documents[old] = Known(False, ended=True)

    found = await here.resolve(here.minted(old))

    assert found.id != old
    assert here.hashes.is_ours(found.id)


async def test_a_fresh_id_of_ours_is_the_session_before_it_is_written(store: Store) -> None:
    here, there = Replica(store), Replica(store)
    minted = here.hashes.mint()

    assert (await here.resolve(here.minted(minted))).id == minted
    assert (await there.resolve(there.minted(minted))).id == minted


async def test_an_id_shaped_like_our_hashes_is_an_unknown_id(store: Store) -> None:
    here = Replica(store)

    for key in ("c_made-up", "c_" + "0" * 32, "h_" + "0" * 32, "p_" + "0" * 32):
        for transport in (True, False):
            found = await here.resolve(header(key, transport=transport))
            assert found.id != key
            assert found.facts.previous_id == key


async def test_a_forged_id_of_ours_opens_nothing_under_itself(store: Store) -> None:
    here = Replica(store)
    forged = make_hashes(b"other").mint()

    assert (await here.resolve(here.minted(forged))).id != forged
    assert (await here.resolve(here.minted(forged), owned=None)).id != forged
    store.down = True
    another = make_hashes(b"other").mint()
    assert (await here.resolve(here.minted(another))).id != another


async def test_before_replicas_agree_on_a_key_ids_of_others_are_taken(store: Store) -> None:
    here = Replica(store)
    here.hashes.learn(b"secret", agreed=False)
    store.down = True
    others = make_hashes(b"other").mint()

    assert (await here.resolve(here.minted(others))).id == others


async def test_during_an_outage_an_unknown_id_is_the_session(store: Store) -> None:
    store.down = True
    here = Replica(store)

    first, second = await here.resolve(header("abc")), await here.resolve(header("abc"))

    assert first is second
    assert (first.id, first.facts.previous_id) == ("abc", None)


async def test_a_conversation_is_the_same_on_every_replica(store: Store) -> None:
    here, there = Replica(store), Replica(store)

    first, second = await here.resolve(conversation()), await there.resolve(conversation())

    assert first.id == second.id == "c_" + "0" * 32
    assert first.facts.conversation_id == "v1/abc"
    assert store.asked == Counter(describe=2)


async def test_a_client_without_an_id_is_one_session_on_all_replicas(store: Store) -> None:
    here, there = Replica(store), Replica(store)

    first, again, elsewhere = [await each.resolve(inferred()) for each in (here, here, there)]

    assert first is again
    assert first.id == elsewhere.id
    assert re.fullmatch(r"[0-9a-f]{32}", first.id)
    assert (first.source, first.facts.limit) == ("inferred", 1800.0)
    assert first.agreement is not None
    assert store.agreed == {first.agreement: first.id}
    assert store.asked["get_or_set"] == 2


async def test_distinguishable_clients_have_separate_sessions(store: Store) -> None:
    here = Replica(store)

    found = {(await here.resolve(inferred(key * 32))).id for key in "abc"}

    assert len(found) == 3


async def test_a_client_that_pauses_longer_than_the_gap_begins_another_session(store: Store) -> None:
    here = Replica(store, session_idle_gap=60)
    first = await here.resolve(inferred())

    here.now += 59
    assert await here.resolve(inferred()) is first
    first.last_activity = here.now
    here.now += 59
    assert await here.resolve(inferred()) is first
    here.now += 60
    store.agreed.clear()

    assert (await here.resolve(inferred())).id != first.id


async def test_concurrent_requests_share_a_provisional_id_during_an_outage(store: Store) -> None:
    store.down = True
    here = Replica(store)
    found: list[Session] = []

    async def one() -> None:
        found.append(await here.resolve(inferred()))

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(one)

    assert len({session.id for session in found}) == 1
    assert (await here.resolve(inferred())).id == found[0].id


async def test_a_session_that_has_ended_is_not_found_under_its_id(store: Store) -> None:
    here = Replica(store)
    session = here.open("abc")

    session.ended = True

    assert here.registry.get("abc") is None
    assert here.lookup.peek(header("abc")) is None


async def test_a_session_is_over_when_its_time_is(store: Store) -> None:
    here = Replica(store, session_ttl=100)
    session = here.open("abc")

    here.now += 99
    assert here.registry.get("abc") is session
    here.now += 1

    assert here.registry.get("abc") is None


async def test_another_user_of_the_same_id_has_another_session_and_is_counted(store: Store) -> None:
    here = Replica(store)

    anns = await here.resolve(header("abc", ANN), owned=True)
    bobs = await here.resolve(header("abc", BOB), owned=True)
    nobodys = await here.resolve(header("abc"), owned=True)

    assert anns.id == "abc"
    assert len({anns.id, bobs.id, nobodys.id}) == 3
    assert bobs.id.startswith("p_")
    assert (await here.resolve(header("abc", BOB), owned=True)) is bobs
    assert (await here.resolve(header("abc", ANN), owned=True)) is anns
    assert set(here.rejected) == {"principal"}


async def test_another_user_of_a_conversation_has_another_session(store: Store) -> None:
    here = Replica(store)

    anns, bobs = await here.resolve(conversation(principal=ANN)), await here.resolve(conversation(principal=BOB))

    assert anns.id != bobs.id
    assert here.rejected == ["principal"]


async def test_the_successor_of_an_id_is_bound_to_its_user_as_well(store: Store) -> None:
    here = Replica(store)

    anns = await here.resolve(header("lost", ANN))
    bobs = await here.resolve(header("lost", BOB))

    assert anns.facts.principal == "ann"
    assert bobs.id != anns.id
    assert here.rejected == ["principal"]


async def test_a_rotated_token_is_no_other_user(store: Store) -> None:
    here = Replica(store)

    first = await here.resolve(header("abc", TOKEN), owned=True)
    second = await here.resolve(header("abc", Principal("rotated")), owned=True)

    assert first is second
    assert here.rejected == []


@pytest.mark.parametrize("begun", ["by a handshake", "by a message", "on another replica"])
async def test_a_session_that_began_without_a_user_is_nobodys(store: Store, begun: str) -> None:
    here = Replica(store)
    if begun == "by a handshake":
        here.open("abc")
    elif begun == "on another replica":
        store.documents["abc"] = Known(True, facts=SessionFacts("abc", 5.0, HOUR))

    found = [await here.resolve(header("abc", who), owned=True) for who in (NOBODY, ANN, BOB, NOBODY)]

    assert len(set(found)) == 1
    assert here.rejected == []


async def test_the_first_message_binds_a_session_without_a_handshake(store: Store) -> None:
    here = Replica(store)

    first, second, third = [await here.resolve(header("abc", who), owned=True) for who in (ANN, NOBODY, BOB)]

    assert len({first, second, third}) == 3
    assert await here.resolve(header("abc", ANN), owned=True) is first


async def test_beyond_the_limit_there_is_no_session_and_each_is_counted(store: Store) -> None:
    here = Replica(store, max_new_sessions=2)

    first = await here.resolve(header("a"), owned=True)
    await here.resolve(inferred())

    assert here.lookup.open("opened", NOBODY) is None
    assert await here.lookup.resolve(header("owned"), owned=True) is None
    assert await here.lookup.resolve(header("unknown"), owned=False) is None
    assert await here.lookup.resolve(inferred("0" * 32), owned=False) is None
    assert await here.lookup.resolve(conversation(), owned=False) is None
    assert here.rejected == ["limit"] * 5
    assert await here.resolve(header("a"), owned=True) is first


async def test_a_minute_later_sessions_may_begin_again(store: Store) -> None:
    here = Replica(store, max_new_sessions=1)
    await here.resolve(header("a"), owned=True)
    assert await here.lookup.resolve(header("b"), owned=True) is None

    here.now += 60

    assert (await here.resolve(header("b"), owned=True)).id == "b"


async def test_a_session_that_another_replica_began_is_no_new_one(store: Store) -> None:
    store.documents["shared"] = Known(True, facts=SessionFacts("shared", 5.0, HOUR))
    here = Replica(store, max_new_sessions=1)
    await here.resolve(header("a"), owned=True)

    found = await here.lookup.resolve(header("shared"), owned=False)

    assert found is not None
    assert found.id == "shared"


async def test_made_up_ids_are_asked_about_within_the_limit(store: Store) -> None:
    here = Replica(store, max_new_sessions=10, max_sessions=50)

    for number in range(1000):
        await here.lookup.resolve(header(f"made-up-{number}"), owned=False)

    assert len(store.agreed) <= 10
    assert store.asked["get_or_set_successor"] <= 10


async def test_sessions_are_held_up_to_a_bound_by_last_use(store: Store) -> None:
    here = Replica(store, max_sessions=3)
    for name in "abc":
        await here.resolve(header(name), owned=True)
    await here.resolve(header("a"), owned=True)

    await here.resolve(header("d"), owned=True)

    assert [name for name in "abcd" if here.registry.get(name) is not None] == ["a", "c", "d"]


async def test_what_is_only_proposed_is_neither_opened_nor_written(store: Store) -> None:
    here = Replica(store)
    claims = [inferred(), header("lost"), header("owned"), conversation()]

    drafts = [await here.lookup.propose(claim, owned=claim.key == "owned") for claim in claims]

    assert all(draft is not None for draft in drafts)
    assert store.agreed == {}
    assert all(here.lookup.peek(claim) is None for claim in claims)


async def test_what_was_proposed_is_what_is_opened_once_the_server_accepts(store: Store) -> None:
    here = Replica(store)

    for claim, owned in (
        (inferred(), False),
        (header("lost"), False),
        (header("owned"), True),
        (header("perhaps"), None),
        (conversation(), False),
    ):
        draft = await here.lookup.propose(claim, owned=owned)
        opened = await here.lookup.resolve(claim, owned=owned, proposed=draft)
        assert draft is not None
        assert opened is not None
        assert (opened.id, opened.source) == (draft.id, draft.source)
        assert opened.facts.previous_id == draft.facts.previous_id


async def test_a_proposal_names_what_the_replicas_have_agreed_on(store: Store) -> None:
    here, there = Replica(store), Replica(store)
    known = [await here.resolve(inferred()), await here.resolve(header("lost"))]

    drafts = [await there.lookup.propose(claim, owned=False) for claim in (inferred(), header("lost"))]

    assert [draft.id for draft in drafts if draft is not None] == [session.id for session in known]


async def test_another_user_is_proposed_what_it_would_get(store: Store) -> None:
    here = Replica(store)
    await here.resolve(header("abc", ANN), owned=True)

    draft = await here.lookup.propose(header("abc", BOB), owned=True)

    assert draft is not None
    assert draft.id == (await here.resolve(header("abc", BOB), owned=True)).id != "abc"


async def test_the_public_state_of_a_session_is_a_copy_without_calls(store: Store) -> None:
    here = Replica(store)
    session = await here.resolve(conversation())

    state = session.state()
    state.client_name = "changed"

    assert (state.session_id, state.source, state.conversation_id) == (session.id, "conversation", "v1/abc")
    assert state.tool_calls == []
    assert session.facts.client_name is None


async def test_another_user_of_a_lost_id_is_proposed_another_session(store: Store) -> None:
    there, here = Replica(store), Replica(store)
    anns = await there.resolve(header("lost", ANN))
    store.documents[anns.id] = Known(True, facts=anns.facts)

    proposed = await here.lookup.propose(header("lost", BOB), owned=False)
    resolved = await here.lookup.resolve(header("lost", BOB), owned=False, proposed=proposed)

    assert proposed is not None
    assert resolved is not None
    assert proposed.id == resolved.id != anns.id


async def test_an_ended_successor_begins_again_within_the_limit_only(store: Store) -> None:
    there, here = Replica(store), Replica(store, max_new_sessions=1)
    continued = [await there.resolve(header(name)) for name in ("lost", "found")]
    await here.resolve(header("other"))
    store.documents[continued[0].id] = Known(False, ended=True)

    assert await here.lookup.resolve(header("lost"), owned=False) is None
    assert here.rejected == ["limit"]
    assert (await here.resolve(header("found"))).id == continued[1].id


async def test_ids_met_during_an_outage_are_asked_about_one_by_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_MAX_UNSEEN", 3)
    here = Replica(store, flush_interval=0.01)
    store.down, began = True, time.monotonic()
    blindly = [await here.resolve(header(f"lost-{number}")) for number in range(5)]
    await anyio.sleep(0.1)
    asked, looks = store.asked["describe"], (time.monotonic() - began) / 0.02  # Two intervals lie between two looks.
    store.down = False
    for number in range(5):
        store.agreed[f"lost-{number}:next"] = f"next-{number}"
    with anyio.fail_after(60):
        while not blindly[4].ended:  # noqa: ASYNC110 (the store is asked in the background)
            await anyio.sleep(0.01)

    assert [session.id for session in blindly] == [f"lost-{number}" for number in range(5)]
    assert [session.ended for session in blindly] == [False, False, True, True, True]
    assert 5 < asked <= 5 + looks
    assert (await here.resolve(header("lost-4"))).id == "next-4"
