"""What is read of an answer to ``tools/list``: sizes to the byte, digests of the meaning, and nothing else."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_mcp.wire.catalogue import MOST_TOOLS, Page, PageReader, fingerprint, unread_page
from tests.support.answers import result

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ADD = {"name": "add", "description": "Adds two numbers.", "inputSchema": {"type": "object", "properties": {"a": {}}}}
SUB = {"name": "sub", "description": "Zieht ab: ä, \u2028 und 🎈."}


def answer(*tools: Any, request_id: object = 1, **more: Any) -> Any:
    return result(request_id, {**more, "tools": list(tools)})


def parse_page(data: bytes) -> Page | None:
    reader = PageReader(data)
    reader.read()
    assert reader.is_read
    return reader.page


def page_of(message: Any, **style: Any) -> Page:
    page = parse_page(json.dumps(message, **style).encode())
    assert page is not None
    return page


@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False}])
def test_sizes_are_those_of_the_text(style: dict[str, Any]) -> None:
    written = json.dumps(answer(ADD, SUB), **style).encode()
    page = parse_page(written)

    assert page is not None
    assert page.tools is not None
    starts = [written.index(b"{", written.index(b'"tools"'))]
    starts.append(written.index(b"{", starts[0] + page.tools[0].size))
    for tool, at, meant in zip(page.tools, starts, (ADD, SUB), strict=True):
        assert json.loads(written[at : at + tool.size]) == meant
    assert page.size == sum(tool.size for tool in page.tools)


@given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4), max_size=4), st.booleans(), st.booleans())
def test_any_definitions_are_measured_and_digested(tools: list[Any], spaced: bool, escaped: bool) -> None:
    style: dict[str, Any] = {"ensure_ascii": escaped, "separators": (", ", ": ") if spaced else (",", ":")}

    page = page_of(answer(*tools), **style)

    assert [tool.size for tool in page.tools or ()] == [len(json.dumps(tool, **style).encode()) for tool in tools]
    assert page.digest == page_of(answer(*tools), sort_keys=True).digest


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_listing_is_none(data: bytes) -> None:
    assert parse_page(data) is None


@pytest.mark.parametrize("data", [b'{"result":{"tools":[{}', b'{"result":{"tools":[' + b"[" * 100_000, b'{"result":3}'])
def test_what_is_broken_off_is_no_listing(data: bytes) -> None:
    assert parse_page(data) is None


@pytest.mark.parametrize("most", [1, 300])
def test_what_is_read_in_parts_is_what_is_read_at_once(most: int) -> None:
    written = json.dumps(answer(*[{**ADD, "name": f"add-{number}"} for number in range(20)])).encode()
    reader, parts = PageReader(written), list[int]()

    while not reader.is_read:
        assert reader.page is None
        parts.append(reader.read(most))

    assert reader.page == parse_page(written)
    assert len(parts) >= 20 * len(json.dumps(ADD)) // (most + len(json.dumps(ADD)))
    assert max(parts) < most + len(json.dumps(ADD)) + 10


@pytest.mark.parametrize("member", [{}, 0])
def test_a_list_of_very_many_tools_is_not_read(member: object) -> None:
    written = json.dumps(answer(*[member] * (MOST_TOOLS + 1))).encode()

    assert parse_page(written) == unread_page(len(written))
    assert page_of(answer(*[member] * MOST_TOOLS)).tools is not None


def test_the_digest_is_of_names_and_meaning_in_any_order() -> None:
    digest = page_of(answer(ADD, SUB)).digest

    assert digest == page_of(answer(SUB, ADD)).digest
    assert digest == page_of(answer(dict(reversed(ADD.items())), SUB), indent=1).digest
    for other in ({**ADD, "name": "plus"}, {**ADD, "description": ""}, {**ADD, "inputSchema": {}}, {**ADD, "x": 1}):
        assert digest != page_of(answer(other, SUB)).digest
    assert digest != page_of(answer(ADD)).digest


def test_a_page_names_the_next_one() -> None:
    assert page_of(answer(ADD, nextCursor="2")).next_cursor == "2"
    assert [page_of(answer(ADD, nextCursor=last)).next_cursor for last in (None, "", 3)] == [None, None, None]


def test_a_tool_may_ask_hosts_to_take_more() -> None:
    limits = (500_000, "many", True, -1)
    tools = [{**ADD, "_meta": {"anthropic/maxResultSizeChars": limit}} for limit in limits]

    assert [tool.limit for tool in page_of(answer(*tools, ADD)).tools or ()] == [500_000, None, None, None, None]


@pytest.mark.parametrize("order", list(permutations(("jsonrpc", "id", "result"))))
@pytest.mark.parametrize("style", [{}, {"separators": (",", ":")}, {"indent": 2}])
def test_a_fingerprint_leaves_out_the_id_alone(order: tuple[str, ...], style: dict[str, Any]) -> None:
    def print_of(tool: Any, request_id: object) -> int:
        written = answer(tool, request_id=request_id)
        return fingerprint(json.dumps({key: written[key] for key in order}, **style).encode())

    assert print_of(ADD, 1) == print_of(ADD, "two") == print_of(ADD, 3_000)
    assert print_of(ADD, 1) != print_of(SUB, 1)
    assert print_of({**ADD, "id": 1}, 1) != print_of({**ADD, "id": 2}, 1)
