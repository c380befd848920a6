"""What real servers list is measured to the byte: however it is written and cut, in pages, and for each user."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.catalogues.masking import mask
from tests.catalogues.servers import SERVERS
from tests.replay.listings import NAMES, Catalogue, by_label, bytes_of, definitions, load, name_of
from tests.support.answers import initialized
from tests.support.asgi import post, read, respond, stream
from tests.support.messages import CLIENT_INFO, MODERN, ask, initialize, legacy_headers
from tests.support.providers import Telemetry
from tests.unit.conftest import MakeRuntime

pytestmark = pytest.mark.anyio
JSON_BODY: Final = "application/json"
EVENTS: Final = "text/event-stream"

Cut = Callable[[bytes], Iterable[bytes]]


@pytest.fixture(params=NAMES)
def catalogue(request: pytest.FixtureRequest) -> Catalogue:
    return load(request.param)


class Lister:
    """A server that answers each request for its tools with the next of these bodies, cut into pieces."""

    def __init__(self, cut: Cut = lambda body: [body]) -> None:
        self.cut = cut
        self.answer: tuple[str, bytes] = ("", b"")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        message = json.loads(await read(receive))
        if message["method"] == "initialize":
            return await respond(send, initialized(message["id"]), headers=[("mcp-session-id", message["id"])])
        content_type, body = self.answer
        if content_type.startswith(EVENTS):
            return await stream(send, self.cut(body))
        headers = [(b"content-type", content_type.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in self.cut(body):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Client:
    """Lists tools under a name of its own, in one revision."""

    def __init__(self, runtime: Runtime, name: str, *, modern: bool) -> None:
        self.name = name
        self.server = Lister()
        self._app = MCPMiddleware(self.server, runtime)
        self._modern = modern
        self._begun = False

    async def list(self, text: str, content_type: str, body: bytes, **params: str) -> None:
        """Ask for the tools, and get this answer."""
        self.server.answer = content_type, body
        request_id = json.loads(text)["id"]
        if self._modern:
            meta = {CLIENT_INFO: {"name": self.name, "version": "9"}}
            headers = [("mcp-protocol-version", MODERN), ("mcp-method", "tools/list")]
            reply = await post(self._app, ask("tools/list", request_id, **params, _meta=meta), headers)
        else:
            if not self._begun:
                await post(self._app, initialize(self.name, name=self.name))
                self._begun = True
            reply = await post(self._app, ask("tools/list", request_id, **params), legacy_headers(self.name))
        assert reply.body == body


def at_random(body: bytes) -> Iterator[bytes]:
    """Pieces of any length, some of them empty: within events, line ends, escapes and characters."""
    generator = random.Random(len(body))
    cuts = sorted(generator.choices(range(len(body) + 1), k=12))
    return (body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True))


def small(body: bytes) -> Iterator[bytes]:
    """What proxies and small buffers make of it."""
    return (body[at : at + 1021] for at in range(0, len(body), 1021))


CUTS: Final[dict[str, Cut]] = {"whole": lambda body: [body], "at random": at_random, "small": small}


def measured(telemetry: Telemetry) -> dict[str, tuple[int, int]]:
    """How often each client has listed everything, and how many bytes that were."""
    points = telemetry.points("otel_mcp.catalogue.size")
    return {attributes["otel_mcp.client.name"]: value for attributes, value in points}


def the_tools_are_measured(telemetry: Telemetry, tools: Sequence[str]) -> None:
    """Each has its size and a series of calls that begins at zero."""
    expected = by_label(tools)
    points = telemetry.points("otel_mcp.tool.definition.size")
    assert {attributes["gen_ai.tool.name"]: size for attributes, size in points} == expected
    assert sum(expected.values()) == bytes_of(tools)
    assert telemetry.points("otel_mcp.catalogue.tools") == [({}, len(tools))]
    calls = {attributes["gen_ai.tool.name"]: count for attributes, count in telemetry.points("otel_mcp.tool.calls")}
    assert calls == dict.fromkeys(expected.keys() - {"_OTHER"}, 0)


async def test_every_answer_is_measured_to_the_byte(
    catalogue: Catalogue, runtime: Runtime, telemetry: Telemetry
) -> None:
    expected: dict[str, tuple[int, int]] = {}
    cuts = cycle(CUTS.values())
    for answer in catalogue.answers:
        client = Client(runtime, answer.way, modern=answer.is_modern)
        for client.server.cut in (next(cuts), next(cuts)):
            await client.list(answer.text, answer.content_type, answer.body)
        expected[answer.way] = 2, 2 * bytes_of(definitions(answer.text))

    assert measured(telemetry) == expected
    the_tools_are_measured(telemetry, definitions(catalogue.answers[-1].text))
    # SDK 2.x writes the same tools in two ways, to clients of either revision: with other escapes, in another order.
    await runtime.shut_down()
    assert changes(telemetry) == []


def in_lines(text: str, end: str) -> bytes:
    """An event whose data stand in several lines, as of JSON that is written for people."""
    # One space behind the colon belongs to the frame; a line that begins with one of its own needs both.
    lines = [
        f"data:{' ' if number % 2 or line[:1] == ' ' else ''}{line}" for number, line in enumerate(text.split("\n"))
    ]
    return f"\ufeff: a comment{end}id: 1_0{end}{end.join(lines)}{end}{end}".encode()


def reordered(text: str) -> str:
    message = json.loads(text)
    return json.dumps({"result": message["result"], "id": message["id"], "jsonrpc": "2.0"}, ensure_ascii=False)


WRITTEN: Final[dict[str, tuple[Callable[[str], str], Callable[[str], bytes], str]]] = {
    "escaped": (lambda text: json.dumps(json.loads(text)), str.encode, JSON_BODY),
    "for people": (lambda text: json.dumps(json.loads(text), indent=2, ensure_ascii=False), str.encode, JSON_BODY),
    "id last": (reordered, str.encode, "application/json; charset=utf-8"),
    "LF": (str, lambda text: f"event: message\ndata: {text}\n\n".encode(), EVENTS),
    "CR": (str, lambda text: f"event: message\rdata: {text}\r\r".encode(), EVENTS),
    "lines": (lambda text: json.dumps(json.loads(text), indent=1), lambda text: in_lines(text, "\n"), EVENTS),
    "CRLF lines": (lambda text: json.dumps(json.loads(text), indent="\t"), lambda text: in_lines(text, "\r\n"), EVENTS),
}
"""Other ways to write the same: the JSON text, its bytes on the wire, and what they are."""


async def test_other_writers_of_the_same_catalogue_are_measured_to_the_byte(
    catalogue: Catalogue, runtime: Runtime, telemetry: Telemetry
) -> None:
    expected: dict[str, tuple[int, int]] = {}
    cuts = cycle((at_random, small))
    for name, (write, frame, content_type) in WRITTEN.items():
        text = write(catalogue.answers[0].text)
        client = Client(runtime, name, modern=False)
        client.server.cut = next(cuts)
        await client.list(text, content_type, frame(text))
        expected[name] = 1, bytes_of(definitions(text))

    assert measured(telemetry) == expected


def pages_of(text: str, size: int = 7) -> list[tuple[dict[str, str], str]]:
    """The same definitions, byte for byte, in answers of so many: what is asked for, and the answer."""
    tools = definitions(text)
    pages: list[tuple[dict[str, str], str]] = []
    for at in range(0, len(tools), size):
        more = f',"nextCursor":"{at + size}"' if at + size < len(tools) else ""
        page = f'{{"jsonrpc":"2.0","id":1,"result":{{"tools":[{",".join(tools[at : at + size])}]{more}}}}}'
        pages.append(({"cursor": str(at)} if at else {}, page))
    return pages


@pytest.mark.parametrize("modern", [False, True])
async def test_a_catalogue_in_pages_is_as_large_as_in_one(
    catalogue: Catalogue, modern: bool, runtime: Runtime, telemetry: Telemetry
) -> None:
    text = catalogue.answers[0].text
    client = Client(runtime, "paged", modern=modern)
    for _ in range(2):
        for asked, page in pages_of(text):
            await client.list(page, JSON_BODY, page.encode(), **asked)

    assert measured(telemetry) == {"paged": (2, 2 * bytes_of(definitions(text)))}
    the_tools_are_measured(telemetry, definitions(text))


def changes(telemetry: Telemetry) -> list[Message]:
    """What was reported, without its hashes."""
    found = [event["attributes"] for event in telemetry.events() if event["name"] == "catalogue.changed"]
    return [
        {key.removeprefix("otel_mcp.catalogue."): value for key, value in event.items() if "hash" not in key}
        for event in found
    ]


def of_tools(tools: Iterable[str]) -> str:
    return f'{{"jsonrpc":"2.0","id":1,"result":{{"tools":[{",".join(tools)}]}}}}'


async def test_users_with_other_tools_are_measured_apart_and_reported_once(
    catalogue: Catalogue, make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    runtime = make_runtime()
    tools = definitions(catalogue.answers[0].text)
    shown = {"everything": tools, "some": tools[::2]}
    for _ in range(3):
        for name, seen in shown.items():
            text = of_tools(seen)
            await Client(runtime, name, modern=True).list(text, JSON_BODY, text.encode())
            await runtime.shut_down()

    assert measured(telemetry) == {name: (3, 3 * bytes_of(seen)) for name, seen in shown.items()}
    the_tools_are_measured(telemetry, tools)
    hidden = sorted(map(name_of, tools[1::2]))
    sizes = {"size": bytes_of(tools[::2]), "previous_size": bytes_of(tools)}
    assert changes(telemetry) == ([{"removed": tuple(hidden[:100]), **sizes}] if hidden else [])


async def test_one_changed_description_is_reported_once_without_its_text(
    catalogue: Catalogue, runtime: Runtime, telemetry: Telemetry
) -> None:
    old = definitions(catalogue.answers[0].text)
    changed = [re.sub(r'"description":"', r'"description":"Ein Gehe\\u00edmnis. ', tool, count=1) for tool in old[-1:]]
    new = [*old[:-1], *changed]
    backwards = [json.dumps(dict(reversed(json.loads(tool).items()))) for tool in reversed(new)]
    client = Client(runtime, "reader", modern=True)

    async def shown(pages: Sequence[tuple[dict[str, str], str]]) -> None:
        for asked, page in pages:
            await client.list(page, JSON_BODY, page.encode(), **asked)
        await runtime.shut_down()

    whole: Any = {}
    await shown([(whole, of_tools(old))])
    await shown([(whole, of_tools(new))])
    # The same, as another library writes it, and in pages of several lengths: nobody's model reads anything else.
    await shown([(whole, of_tools(backwards))])
    for size in (7, 3):
        await shown(pages_of(of_tools(new), size))
    await shown([(whole, of_tools(old))])

    sizes = {"size": bytes_of(new), "previous_size": bytes_of(old)}
    assert changes(telemetry) == [{"changed": (name_of(old[-1]),), **sizes}]
    assert "Gehe" not in telemetry.everything()


def test_twenty_servers_are_recorded_without_their_prose() -> None:
    recorded = [load(name) for name in NAMES]

    assert len(recorded) >= 20
    assert [each.facts["package"] for each in recorded] == [
        server.package for server in sorted(SERVERS, key=lambda server: server.name)
    ]
    for each in recorded:
        assert all(mask(text) == text for text in each.facts["texts"])


def test_the_page_compares_with_what_these_servers_list() -> None:
    page = (Path(__file__).parents[2] / "docs" / "context.md").read_text(encoding="utf-8")
    catalogues = [definitions(load(name).answers[0].text) for name in NAMES]
    counts, sizes = sorted(map(len, catalogues)), sorted(map(bytes_of, catalogues))

    assert f"{len(catalogues)} public servers" in page
    assert f"{counts[0]} to {counts[-1]} tools in {sizes[0] / 1000:.0f} to {sizes[-1] / 1000:.0f} kB" in page
    assert f"them more than {median(sizes) / 1000:.0f} kB" in page
    assert sum(size > 100_000 for size in sizes) == 4
    assert 750 < median(bytes_of([tool]) for tools in catalogues for tool in tools) < 800


@pytest.mark.parametrize(
    ("written", "masked"),
    [
        (
            r'{"name": "add", "description": "Über \u00e9 \"a1\"\n中🎈"}',
            r'{"name": "add", "description": "äxxx \u00e4 \"x0\"\n中🎈"}',
        ),
        ('{"enum": ["a-b", "two words"], "type": ["object"]}', '{"enum": ["a-b", "xxx xxxxx"], "type": ["object"]}'),
        (
            '{"properties": {"title": {"type": "x"}}, "title": "T"}',
            '{"properties": {"title": {"type": "x"}}, "title": "X"}',
        ),
    ],
)
def test_prose_is_masked_letter_by_letter(written: str, masked: str) -> None:
    assert mask(written) == masked
    assert len(masked.encode()) == len(written.encode())
