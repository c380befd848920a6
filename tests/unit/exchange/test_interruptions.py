"""What a refused request says of a session: which replica saw it, and whether it was cut, counted once, or nothing."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from otel_mcp import MCPMiddleware, SessionState
from otel_mcp.runtime import Runtime
from otel_mcp.sessions import interruptions
from otel_mcp.types import Message
from tests.support.answers import Server, error
from tests.support.asgi import PATIENCE, delete, get, post, read, respond
from tests.support.messages import MODERN_HEADERS, ask, call, initialize, legacy_headers, modern
from tests.support.providers import Telemetry
from tests.support.stores import Server as Valkey
from tests.unit.conftest import MakeRuntime
from tests.unit.identity.test_resolver import jwt

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("patient")]

OWN = legacy_headers("own")
ANN, BOB = jwt("ann"), jwt("bob")
CHAT = {"openai/session": "v1/chat", "openai/subject": "v1/person"}


class Service:
    """Processes of one service on one store, which keep their sessions to themselves."""

    def __init__(self, valkey: Valkey, make_runtime: MakeRuntime, telemetry: Telemetry) -> None:
        valkey.client().flushall()
        self._url, self._make, self._telemetry = valkey.url, make_runtime, telemetry

    def process(self) -> Runtime:
        return self._make(redis_url=self._url, flush_interval=0.05)

    def told(self) -> list[tuple[str, str, str]]:
        """What was reported, in order: the session, and why it was cut or how soon somebody was back."""
        names = {"session.interrupted": "otel_mcp.session.interrupted.cause",
                 "session.returned": "otel_mcp.session.returned.within"}  # fmt: skip
        return [
            (event["name"], event["attributes"]["session.id"], event["attributes"][names[event["name"]]])
            for event in self._telemetry.events()
            if event["name"] in names
        ]

    async def wait(self, reports: int = 1) -> None:
        """Wait for so many reports."""
        with anyio.fail_after(PATIENCE):
            while len(self.told()) < reports:  # noqa: ASYNC110 (what is waited for lies in a store)
                await anyio.sleep(0.01)

    def counted(self) -> dict[str, int]:
        """Counts by cause, and by how soon."""
        found: dict[str, int] = {}
        for name in ("otel_mcp.session.interrupted", "otel_mcp.session.returned"):
            for attributes, value in self._telemetry.points(name):
                if value:
                    found[" ".join(sorted(map(str, attributes.values())))] = value
        return found


@pytest.fixture
def service(valkey: Valkey, make_runtime: MakeRuntime, telemetry: Telemetry) -> Service:
    return Service(valkey, make_runtime, telemetry)


def knowing(runtime: Runtime, session_id: str = "own") -> MCPMiddleware:
    return MCPMiddleware(Server(session_id=session_id), runtime)


def refusing(runtime: Runtime, status: int = 404) -> MCPMiddleware:
    """A server that has never heard of any session."""

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await read(receive)
        await respond(send, error(-32600, None, "Session not found"), status)

    return MCPMiddleware(app, runtime)


def ended(state: SessionState | None) -> str | None:
    return state.ended.reason if state is not None and state.ended is not None else None


async def begin(service: Service, *user: tuple[str, str]) -> Runtime:
    """Have a process serve the session `own`."""
    runtime = service.process()
    app = knowing(runtime)
    await post(app, initialize(), user)
    await post(app, call(), [*OWN, *user])
    runtime.recorder.drain()
    await runtime.sessions.flush()
    return runtime


@pytest.mark.parametrize("status", [404, 400])
async def test_a_session_is_cut_once_by_the_process_after_its_own(service: Service, status: int) -> None:
    await begin(service)
    young = refusing(after := service.process(), status)

    replies = [await post(young, ask("tools/list"), OWN), await get(young, OWN), await post(young, call(), OWN)]
    await after.shut_down()

    assert [reply.status for reply in replies] == [status] * 3
    assert service.told() == [("session.interrupted", "own", "restart")]
    assert service.counted() == {"restart unit-client": 1}


@pytest.mark.parametrize(
    ("status", "where"),
    [
        (404, {"path": "/messages/", "query": "session_id=own"}),  # As of 2024-11-05.
        (400, {"headers": OWN}),  # As the SDK up to 1.12.
    ],
    ids=("sse", "sdk-1.12"),
)
async def test_a_server_need_not_read_the_message_that_it_refuses(
    service: Service, status: int, where: dict[str, Any]
) -> None:
    await begin(service)

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await respond(send, b"Could not find session", status)

    young = service.process()
    await post(MCPMiddleware(app, young), call(), **where)
    await young.shut_down()

    assert service.told() == [("session.interrupted", "own", "restart")]


async def test_an_older_process_is_the_wrong_replica(service: Service) -> None:
    other = service.process()
    await anyio.sleep(0.001)  # Or the session is as old as that.
    await begin(service)

    await post(refusing(other), call(), OWN)
    await other.shut_down()

    assert service.told() == [("session.interrupted", "own", "replica")]


async def test_an_older_process_gets_what_an_ended_one_has_served(service: Service) -> None:
    other = service.process()
    await anyio.sleep(0.001)
    gone = await begin(service)
    await gone.shut_down()

    await post(refusing(other), call(), OWN)
    await other.shut_down()

    assert service.told() == [("session.interrupted", "own", "restart")]


async def test_the_process_that_served_a_session_has_closed_it_itself(service: Service) -> None:
    runtime = await begin(service)

    await post(refusing(runtime), call(), OWN)
    await runtime.shut_down()

    assert service.told() == [("session.interrupted", "own", "idle_reaper")]
    assert ended(await service.process().sessions.load("own")) == "server_closed"


async def test_a_request_refused_for_another_reason_cuts_nothing(service: Service) -> None:
    runtime = await begin(service)
    stateless = service.process()

    await post(refusing(runtime, 400), call(), OWN)  # It knows the session.
    await post(refusing(stateless, 400), b"no message", OWN)
    await delete(refusing(stateless), OWN)  # Its client gives it up.
    await post(refusing(stateless), modern(), [*MODERN_HEADERS, ("mcp-session-id", "own")])
    await post(refusing(stateless, 403), call(), OWN)
    await post(refusing(stateless), call(), legacy_headers("made-up"))
    for each in (runtime, stateless):
        await each.shut_down()

    assert service.told() == []


async def test_an_id_of_ours_is_never_cut(service: Service) -> None:
    first = service.process()
    minted = (await post(MCPMiddleware(Server(), first), initialize())).headers["mcp-session-id"]
    await post(MCPMiddleware(Server(), first), call(), legacy_headers(minted))
    await first.shut_down()
    young = service.process()

    await post(refusing(young, 400), call(), legacy_headers(minted))
    await young.shut_down()

    assert service.told() == []


async def test_another_user_cuts_no_session(service: Service) -> None:
    await begin(service, ANN)
    young = service.process()

    await post(refusing(young), call(), [*OWN, BOB])
    await post(refusing(young), call(), OWN)
    await young.shut_down()
    assert service.told() == []
    await post(refusing(young), call(), [*OWN, ANN])
    await young.shut_down()

    assert service.told() == [("session.interrupted", "own", "restart")]


async def test_a_session_on_two_replicas_is_back_on_its_own(service: Service) -> None:
    other = service.process()
    await anyio.sleep(0.001)
    own = await begin(service)
    await post(refusing(other), call(), OWN)
    await service.wait()

    await post(knowing(own), call(), OWN)
    await own.shut_down()

    assert service.told() == [("session.interrupted", "own", "replica"), ("session.returned", "own", "1m")]
    assert service.counted() == {"replica unit-client": 1, "1m unit-client": 1}


async def test_the_session_of_a_conversation_is_cut_and_goes_on(service: Service) -> None:
    first = service.process()
    app = knowing(first, "one")
    await post(app, initialize())
    told = await post(app, call(meta=CHAT), legacy_headers("one"))
    await first.shut_down()
    second = service.process()
    await post(refusing(second), call(meta=CHAT), legacy_headers("one"))
    await service.wait()

    app = knowing(second, "two")
    await post(app, initialize())
    again = await post(app, call(meta=CHAT), legacy_headers("two"))
    await second.shut_down()

    assert again.session_id == told.session_id != "one"
    assert service.told() == [
        ("session.interrupted", told.session_id, "restart"),
        ("session.returned", told.session_id, "1m"),
    ]


async def test_a_client_is_back_with_a_new_session(service: Service) -> None:
    first = await begin(service, ANN)
    await first.shut_down()
    second = service.process()
    await post(refusing(second), call(), [*OWN, ANN])

    app = knowing(second, "new")
    await post(app, initialize(), [ANN])
    await post(app, call(), [*legacy_headers("new"), ANN])
    await service.wait(2)
    await second.shut_down()

    assert service.told() == [("session.interrupted", "own", "restart"), ("session.returned", "new", "1m")]
    read = service.process().sessions
    old, new = await read.load("own"), await read.load("new")
    assert ended(old) == "replaced"
    assert new is not None
    assert new.previous_id == "own"


async def test_made_up_ids_cost_a_bounded_number_of_questions(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruptions, "KEPT", 100)
    monkeypatch.setattr(interruptions, "MOST", 60)
    runtime = service.process()
    app, questions = refusing(runtime), list[int]()
    store: Any = getattr(runtime.sessions, "_store")  # noqa: B009
    cut = store.cut

    async def counting(refusals: Any, gone: Any) -> Any:
        questions.append(len(refusals))
        return await cut(refusals, gone)

    monkeypatch.setattr(store, "cut", counting)
    for number in range(500):
        await post(app, call(), legacy_headers(f"made-up-{number}"))
        await post(app, call(), legacy_headers("made-up-0"))
    await runtime.shut_down()

    assert sum(questions) <= 110
    assert max(questions) <= interruptions.BATCH
    assert service.told() == []
    assert service.counted() == {}
