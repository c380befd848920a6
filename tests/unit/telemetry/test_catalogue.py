"""What the catalogue costs, which of its tools are used, and when it changes: once for all who list it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.runtime import Runtime
from otel_mcp.telemetry.catalogue import taken_by
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import Server, result
from tests.support.asgi import event, post, read, respond, stream
from tests.support.messages import MODERN, ask, call, initialize, legacy_headers
from tests.support.providers import Clock, Telemetry
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio

ADD: Message = {"name": "add", "description": "Adds.", "inputSchema": {"type": "object"}}
SUB: Message = {"name": "sub", "description": "Subtracts.", "inputSchema": {"type": "object"}}
CLIENT: Message = {"otel_mcp.client.name": "unit-client"}
SIZE = "otel_mcp.catalogue.size"


class Lister:
    """A server without sessions that lists tools, in pages if there are cursors; ``sse`` writes events."""

    def __init__(self, *tools: Message, sse: bool = False, pages: dict[str | None, Message] | None = None) -> None:
        self.tools: Sequence[Message] = tools
        self.pages = pages
        self.sse = sse

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        listing = self.pages[message["params"].get("cursor")] if self.pages is not None else {"tools": self.tools}
        answer = result(message["id"], listing if message["method"] == "tools/list" else None)
        await (stream(send, [event(answer)]) if self.sse else respond(send, answer))


async def listing(app: Any, cursor: str | None = None, client: str = "unit-client", number: int = 1) -> None:
    """Have a client of 2026-07-28 list the tools, or one page of them."""
    meta = {"io.modelcontextprotocol/clientInfo": {"name": client, "version": "9"}}
    asked = ask("tools/list", number, **({"cursor": cursor} if cursor is not None else {}), _meta=meta)
    await post(app, asked, [("mcp-protocol-version", MODERN), ("mcp-method", "tools/list")])


def bytes_of(*tools: Message) -> int:
    """How many bytes these take on the wire, as the server of the tests writes them."""
    return sum(len(json.dumps(tool).encode()) for tool in tools)


def definitions(telemetry: Telemetry) -> dict[str, int]:
    points = telemetry.points("otel_mcp.tool.definition.size")
    return {attributes["gen_ai.tool.name"]: size for attributes, size in points}


@pytest.fixture
def changes(telemetry: Telemetry) -> Callable[[], list[Message]]:
    """The changes that were reported, without their hashes and sizes."""

    def changed() -> list[Message]:
        found = [event["attributes"] for event in telemetry.events() if event["name"] == "catalogue.changed"]
        assert all({"otel_mcp.catalogue.hash", "otel_mcp.catalogue.previous_hash"} <= set(each) for each in found)
        return [
            {name.rpartition(".")[2]: tools for name, tools in each.items() if isinstance(tools, tuple)}
            for each in found
        ]

    return changed


@pytest.mark.parametrize("sse", [False, True])
async def test_each_listing_is_measured_and_each_tool(runtime: Runtime, telemetry: Telemetry, sse: bool) -> None:
    app = MCPMiddleware(Lister(ADD, SUB, sse=sse), runtime)

    for number in range(3):
        await listing(app, number=number)
    await listing(app, client="other")

    whole = bytes_of(ADD, SUB)
    assert telemetry.points(SIZE) == [
        (CLIENT, (3, 3 * whole)),
        ({"otel_mcp.client.name": "other"}, (1, whole)),
    ]
    assert definitions(telemetry) == {"add": bytes_of(ADD), "sub": bytes_of(SUB)}
    assert telemetry.points("otel_mcp.catalogue.tools") == [({}, 2)]


async def test_a_legacy_client_is_shown_the_same(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Server({"tools/list": {"result": {"tools": [ADD]}}}, session_id="own"), runtime)

    await post(app, initialize())
    await post(app, ask("tools/list"), legacy_headers("own"))

    assert telemetry.points(SIZE) == [(CLIENT, (1, bytes_of(ADD)))]


async def test_a_tool_that_is_listed_counts_from_zero(runtime: Runtime, telemetry: Telemetry) -> None:
    app = MCPMiddleware(Lister(ADD, SUB), runtime)
    await listing(app)

    for _ in range(2):
        await post(app, call("add"), legacy_headers("own"))

    assert telemetry.points("otel_mcp.tool.calls") == [
        ({"gen_ai.tool.name": "add"}, 2),
        ({"gen_ai.tool.name": "sub"}, 0),
    ]


async def test_pages_are_one_catalogue(runtime: Runtime, telemetry: Telemetry) -> None:
    pages: dict[str | None, Message] = {None: {"tools": [ADD], "nextCursor": "2"}, "2": {"tools": [SUB]}}
    app = MCPMiddleware(Lister(pages=pages), runtime)

    for cursor in (None, "2", None, "2"):
        await listing(app, cursor)

    assert telemetry.points(SIZE) == [(CLIENT, (2, 2 * bytes_of(ADD, SUB)))]
    assert definitions(telemetry) == {"add": bytes_of(ADD), "sub": bytes_of(SUB)}


async def test_a_page_that_another_replica_served_is_taken_from_another_client(
    runtime: Runtime, telemetry: Telemetry
) -> None:
    pages: dict[str | None, Message] = {None: {"tools": [ADD], "nextCursor": "2"}, "2": {"tools": [SUB]}}
    app = MCPMiddleware(Lister(pages=pages), runtime)

    await listing(app, "2")
    assert telemetry.points(SIZE) == []
    await listing(app, None, client="another")
    await listing(app, "2")

    assert telemetry.points(SIZE) == [(CLIENT, (1, bytes_of(ADD, SUB)))]


async def test_pages_that_lead_back_to_themselves_are_no_catalogue(runtime: Runtime, telemetry: Telemetry) -> None:
    ring: dict[str | None, Message] = {
        None: {"tools": [ADD], "nextCursor": "2"},
        "2": {"tools": [SUB], "nextCursor": "2"},
        "3": {"tools": [SUB]},
    }
    app = MCPMiddleware(Lister(pages=ring), runtime)

    for cursor in (None, "2", "3"):
        await listing(app, cursor)

    assert telemetry.points(SIZE) == []


@pytest.mark.parametrize("sse", [False, True])
async def test_a_catalogue_may_be_four_times_as_large_as_other_answers(
    runtime: Runtime, telemetry: Telemetry, sse: bool
) -> None:
    large = {**ADD, "description": "x" * 1_000_000}

    await listing(MCPMiddleware(Lister(large, SUB, sse=sse), runtime))

    assert telemetry.points(SIZE) == [(CLIENT, (1, bytes_of(large, SUB)))]
    assert definitions(telemetry) == {"add": bytes_of(large), "sub": bytes_of(SUB)}


async def test_of_an_answer_too_large_to_read_only_its_size_is_known(runtime: Runtime, telemetry: Telemetry) -> None:
    large = {**ADD, "description": "x" * 1_100_000}

    await listing(MCPMiddleware(Lister(large), runtime))

    assert telemetry.points(SIZE) == [(CLIENT, (1, len(json.dumps(result(1, {"tools": [large]})))))]
    assert telemetry.points("otel_mcp.catalogue.tools") == []


async def test_tools_beyond_the_bound_are_one_sum(runtime: Runtime, telemetry: Telemetry) -> None:
    tools = [{**ADD, "name": f"tool-{number:03}"} for number in range(210)]

    await listing(MCPMiddleware(Lister(*tools), runtime))

    found = definitions(telemetry)
    assert len(found) == 201
    assert found["_OTHER"] == bytes_of(*tools[200:])
    assert sum(found.values()) == bytes_of(*tools)
    assert telemetry.points("otel_mcp.catalogue.tools") == [({}, 210)]


async def test_a_change_is_reported_once_with_names_sizes_and_no_text(
    runtime: Runtime, telemetry: Telemetry, changes: Callable[[], list[Message]]
) -> None:
    server = Lister(ADD, SUB)
    app = MCPMiddleware(server, runtime)
    await listing(app)
    await runtime.shut_down()
    assert changes() == []

    server.tools = [{**ADD, "description": "A secret."}, {**SUB, "name": "minus"}]
    for _ in range(2):
        await listing(app)
    await runtime.shut_down()

    assert changes() == [{"added": ("minus",), "removed": ("sub",), "changed": ("add",)}]
    (found,) = (event["attributes"] for event in telemetry.events() if event["name"] == "catalogue.changed")
    assert found["otel_mcp.catalogue.size"] == bytes_of(*server.tools)
    assert found["otel_mcp.catalogue.previous_size"] == bytes_of(ADD, SUB)
    assert "secret" not in telemetry.everything()


async def test_users_who_are_shown_different_tools_change_nothing(
    runtime: Runtime, changes: Callable[[], list[Message]]
) -> None:
    server = Lister()
    app = MCPMiddleware(server, runtime)

    for _ in range(3):
        for server.tools in ([ADD], [ADD, SUB], [SUB, ADD]):
            await listing(app)
            await runtime.shut_down()
    assert changes() == [{"added": ("sub",)}]

    # What has changed is compared with what its users were shown before.
    server.tools = [{**ADD, "description": "New."}]
    await listing(app)
    await runtime.shut_down()
    assert changes()[1:] == [{"changed": ("add",)}]


async def test_replicas_and_restarts_report_a_change_once(
    valkey_client: Any, valkey_url: str, make_runtime: MakeRuntime, changes: Callable[[], list[Message]]
) -> None:
    async def deploy(*tools: Message) -> None:
        for runtime in [make_runtime(redis_url=valkey_url, flush_interval=0.05) for _ in range(3)]:
            await listing(MCPMiddleware(Lister(*tools), runtime))
            await runtime.shut_down()

    valkey_client.flushall()
    await deploy(ADD)
    await deploy(ADD, SUB)
    await deploy(ADD, SUB)

    assert changes() == [{"added": ("sub",)}]


async def test_a_catalogue_that_always_changes_is_news_ten_times_an_hour(
    runtime: Runtime, changes: Callable[[], list[Message]], logs: Callable[[], list[str]]
) -> None:
    server = Lister()
    app = MCPMiddleware(server, runtime)

    for number in range(20):
        server.tools = [{**ADD, "description": f"It is now {number}."}]
        await listing(app)
    await runtime.shut_down()

    assert changes() == [{"changed": ("add",)}] * 9
    assert len([line for line in logs() if "in more than 10 different ways" in line]) == 1


async def test_catalogues_of_very_many_users_are_news_ten_times_an_hour(
    make_runtime: MakeRuntime,
    changes: Callable[[], list[Message]],
    logs: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime, clock = make_runtime(), Clock()
    monkeypatch.setattr(runtime.metrics.catalogues, "_clock", lambda: clock.now)
    server = Lister()
    app = MCPMiddleware(server, runtime)
    reported: list[int] = []

    for _ in range(5):
        before = len(changes())
        for user in range(40):
            clock.now += 90
            server.tools = [{**ADD, "description": f"For user {user}."}]
            await listing(app)
            if user % 10 == 9:
                await runtime.shut_down()
        reported.append(len(changes()) - before)

    assert reported == [9, 10, 10, 10, 10]
    assert len([line for line in logs() if "in more than 10 different ways" in line]) == 4


async def test_pages_of_too_many_tools_together_are_only_measured(runtime: Runtime, telemetry: Telemetry) -> None:
    halves = [[{"name": f"tool-{half}-{number}"} for number in range(2600)] for half in range(2)]
    pages: dict[str | None, Message] = {None: {"tools": halves[0], "nextCursor": "2"}, "2": {"tools": halves[1]}}
    app = MCPMiddleware(Lister(pages=pages), runtime)

    for cursor in (None, "2"):
        await listing(app, cursor)

    assert telemetry.points(SIZE) == [(CLIENT, (1, bytes_of(*halves[0], *halves[1])))]
    assert telemetry.points("otel_mcp.catalogue.tools") == []


async def test_what_was_listed_before_is_not_digested_again(
    runtime: Runtime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: dict[str | None, Message] = {None: {"tools": [ADD], "nextCursor": "2"}, "2": {"tools": [SUB]}}
    for server in (Lister(ADD, SUB), Lister(pages=pages)):
        app = MCPMiddleware(server, runtime)
        for again in (False, True):
            with monkeypatch.context() as patch:
                if again:
                    patch.delattr("otel_mcp.telemetry.catalogue.digest_of")
                for cursor in pages if server.pages else (None,):
                    await listing(app, cursor)
                runtime.recorder.drain()

    assert telemetry.points(SIZE) == [(CLIENT, (4, 4 * bytes_of(ADD, SUB)))]


async def test_very_many_answers_that_differ_are_only_measured(runtime: Runtime, telemetry: Telemetry) -> None:
    server = Lister()
    app = MCPMiddleware(server, runtime)

    for number in range(20):
        server.tools = [{**ADD, "name": f"tool-{number:02}", "description": "x" * 1_000_000}]
        await listing(app)

    one, whole = bytes_of(*server.tools), len(json.dumps(result(1, {"tools": server.tools})))
    assert telemetry.points(SIZE) == [(CLIENT, (20, 16 * one + 4 * whole))]


async def test_what_was_only_measured_is_read_a_minute_later(
    make_runtime: MakeRuntime, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, clock = make_runtime(), Clock()
    monkeypatch.setattr(runtime.metrics.listings, "_clock", lambda: clock.now)
    server = Lister()
    app = MCPMiddleware(server, runtime)
    for number in range(18):
        server.tools = [{**ADD, "name": f"tool-{number:02}", "description": "x" * 1_000_000}]
        await listing(app)
    server.tools = [SUB]
    await listing(app, client="early")

    clock.now += 61
    await listing(app, client="late")

    sizes = {attributes["otel_mcp.client.name"]: total for attributes, (_, total) in telemetry.points(SIZE)}
    assert sizes["early"] == len(json.dumps(result(1, {"tools": [SUB]})))
    assert sizes["late"] == bytes_of(SUB)


@pytest.mark.parametrize(
    ("client", "size", "counted"),
    [
        ("claude-code", 49_000, False),
        ("claude-code", 51_000, True),
        ("github-copilot-developer", 21_000, True),
        ("Visual Studio Code", 9_000, True),
        ("nobody-knows", 10_000_000, False),
    ],
)
async def test_answers_beyond_what_the_host_takes_are_counted(
    runtime: Runtime, telemetry: Telemetry, client: str, size: int, counted: bool
) -> None:
    results = {"tools/call": {"result": {"content": [{"type": "text", "text": "x" * size}]}}}
    app = MCPMiddleware(Server(results, session_id="own"), runtime)
    await post(app, initialize(name=client))

    await post(app, call(), legacy_headers("own"))

    expected = [({"gen_ai.tool.name": "add", "otel_mcp.client.name": client}, 1)] if counted else []
    assert telemetry.points("otel_mcp.tool.result.oversized") == expected


async def test_what_a_tool_asks_a_person_costs_the_model_nothing(runtime: Runtime, telemetry: Telemetry) -> None:
    asking = {"resultType": "input_required", "inputRequests": {"form": {"message": "x" * 60_000}}}
    app = MCPMiddleware(Server({"tools/call": {"result": asking}}, session_id="own"), runtime)
    await post(app, initialize(name="claude-code"))

    await post(app, call(), legacy_headers("own"))

    assert telemetry.points("otel_mcp.tool.result.oversized") == []
    runtime.recorder.drain()
    state = await runtime.sessions.load("own")
    assert state is not None
    assert (state.tool_call_count, state.context_bytes) == (1, 0)


def test_what_hosts_take_is_documented_with_its_source() -> None:
    page = (Path(__file__).parents[3] / "docs" / "context.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z -]+)` \| ([\d,]+) (\w+)[^|]*\|[^|]+\| (.+) \|$", page, re.MULTILINE)
    units = {"characters": 1, "KiB": 1024, "tokens": 4}

    assert len(rows) >= 8
    for host, most, unit, source in rows:
        assert taken_by(f"{host.title()} 1.0") == int(most.replace(",", "")) * units[unit]
        assert "#" in source


async def test_a_tool_that_asks_its_host_to_take_more_is_believed(runtime: Runtime, telemetry: Telemetry) -> None:
    asking = {**ADD, "_meta": {"anthropic/maxResultSizeChars": 100_000}}
    results = {
        "tools/list": {"result": {"tools": [asking]}},
        "tools/call": {"result": {"content": [{"type": "text", "text": "x" * 60_000}]}},
    }
    app = MCPMiddleware(Server(results, session_id="own"), runtime)
    await post(app, initialize(name="claude-code"))

    await post(app, ask("tools/list"), legacy_headers("own"))
    await post(app, call(), legacy_headers("own"))

    assert telemetry.points("otel_mcp.tool.result.oversized") == []
