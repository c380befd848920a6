"""Messages of a request body, and how an answer says that its request ended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from otel_mcp.wire.jsonrpc import (
    KNOWN_METHODS,
    Message,
    Outcome,
    error_outcome,
    is_mcp,
    json_id,
    negotiated_version,
    outcome_of,
    parse_messages,
    result_outcome,
)


def parsed(body: object) -> list[Message]:
    return parse_messages(body if isinstance(body, bytes) else json.dumps(body).encode())


def message(method: object = "ping", request_id: object = 1, **params: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


@pytest.mark.parametrize("request_id", [0, 1, -1, "", "0", "listen:0", "server-discover-probe-1"])
def test_numbers_and_texts_are_ids_zero_and_empty_included(request_id: object) -> None:
    assert parsed(message(request_id=request_id)) == [Message("ping", request_id, {})]  # type: ignore[arg-type]


@pytest.mark.parametrize("request_id", [None, True, False, [], {}, [1], {"a": 1}])
def test_what_can_be_no_id_is_none(request_id: object) -> None:
    assert json_id(request_id) is None


def test_a_message_without_an_id_is_a_notification() -> None:
    assert parsed({"jsonrpc": "2.0", "method": "notifications/initialized"}) == [
        Message("notifications/initialized", None, {})
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"jsonrpc": "2.0", "id": 1, "result": {}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "x"}},
        {"jsonrpc": "1.0", "id": 1, "method": "ping"},
        {"id": 1, "method": "ping"},
        {"jsonrpc": "2.0", "id": 1, "method": 7},
        {"jsonrpc": "2.0", "id": 1, "method": None},
        "text",
        7,
        None,
        [],
        [1, "x", None, []],
        {},
    ],
)
def test_an_answer_and_what_is_no_json_rpc_holds_no_message(body: object) -> None:
    assert parsed(body) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"jsonrpc":"2.0","method":"\xff"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping"} trailing',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\x00",
        b'"\\ud800"',
    ],
)
def test_what_is_no_json_raises_value_error_and_nothing_else(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - which of its kinds is the parser's business
        parse_messages(body)


def test_a_batch_holds_each_of_its_messages() -> None:
    body = [message(request_id=1), {"jsonrpc": "2.0", "id": 2, "result": {}}, message("tools/list", 3), "x"]

    assert parsed(body) == [Message("ping", 1, {}), Message("tools/list", 3, {})]


def test_a_batch_is_read_up_to_a_bound() -> None:
    assert len(parsed([message(request_id=number) for number in range(5_000)])) == 100


def test_of_duplicate_keys_the_last_one_stands_as_servers_read_it() -> None:
    assert parsed(b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping","method":"tools/list"}') == [
        Message("tools/list", 2, {})
    ]


def test_parameters_that_are_no_object_are_none() -> None:
    assert parsed({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1, 2]}) == [Message("ping", 1, {})]


@pytest.mark.parametrize("meta", [None, [], "x", 7])
def test_meta_that_is_no_object_is_empty(meta: object) -> None:
    assert parsed(message(_meta=meta))[0].meta == {}


@pytest.mark.parametrize(
    ("method", "name", "target"),
    [
        ("tools/call", "add", "add"),
        ("prompts/get", "greet", "greet"),
        ("resources/read", "x", None),
        ("tools/list", "x", None),
        ("tools/call", 7, None),
        ("tools/call", None, None),
        ("tools/call", "x" * 1000, "x" * 256),
    ],
)
def test_the_target_is_the_name_of_a_tool_or_prompt(method: str, name: object, target: str | None) -> None:
    assert parsed(message(method, name=name))[0].target == target


def test_an_id_is_bounded_whatever_it_is_made_of() -> None:
    text = parsed(message(request_id="x" * 100_000))[0].id
    number = parse_messages(b'{"jsonrpc":"2.0","id":' + b"9" * 4000 + b',"method":"ping"}')

    assert text == "x" * 256
    assert len(str(number[0].id)) <= 256


def test_a_method_is_bounded() -> None:
    assert len(parsed(message("x" * 100_000))[0].method) <= 256


@pytest.mark.parametrize("method", sorted(method for method in KNOWN_METHODS if method != "initialize"))
def test_every_known_method_that_only_mcp_has_is_mcp(method: str) -> None:
    assert is_mcp(Message(method, 1, {})) is not method.startswith("tasks/")


@pytest.mark.parametrize(
    ("method", "params", "expected"),
    [
        ("initialize", {"protocolVersion": "2025-06-18"}, True),
        ("initialize", {"processId": 1, "rootUri": None, "capabilities": {}}, False),
        ("initialize", {"protocolVersion": 7}, False),
        ("notifications/anything", {}, True),
        ("tasks/get", {}, False),
        ("tasks/get", {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}, True),
        ("custom/method", {"_meta": {"io.modelcontextprotocol/clientInfo": {}}}, True),
        ("custom/method", {"_meta": {"progressToken": 1}}, False),
        ("textDocument/didOpen", {}, False),
        ("message/send", {}, False),
        ("eth_call", {}, False),
    ],
)
def test_mcp_is_distinguished_from_other_json_rpc(method: str, params: dict[str, Any], expected: bool) -> None:
    assert is_mcp(Message(method, 1, params)) is expected


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ({"result": {}}, Outcome()),
        ({"result": None}, Outcome()),
        ({"result": {"isError": False}}, Outcome()),
        ({"result": {"isError": True}}, Outcome("tool_error")),
        ({"result": {"isError": "true"}}, Outcome()),
        ({"result": {"isError": 1}}, Outcome()),
        ({"error": {"code": -32601, "message": "x"}}, Outcome(None, "-32601")),
        ({"error": {"code": 0, "message": "x"}}, Outcome("0", "0")),
        ({"error": {"code": -32600}, "result": {}}, Outcome(None, "-32600")),
        ({"error": None, "result": {}}, Outcome()),
        ({"method": "ping"}, None),
        ({}, None),
    ],
)
def test_an_answer_says_how_its_request_ended(reply: dict[str, Any], outcome: Outcome | None) -> None:
    assert outcome_of({"jsonrpc": "2.0", "id": 1, **reply}) == outcome


@pytest.mark.parametrize("code", [None, "x", True, 1.5, 10**12, -(10**400), [], {}])
def test_an_error_code_beyond_the_protocol_stays_out_of_attributes(code: object) -> None:
    assert error_outcome(code) == Outcome("0", "0")


@pytest.mark.parametrize("value", [None, 7, "isError", [{"isError": True}], {"content": [{"isError": True}]}])
def test_only_the_result_itself_says_that_the_tool_failed(value: object) -> None:
    assert result_outcome(value) == Outcome()


@pytest.mark.parametrize(
    ("value", "version"),
    [
        ({"protocolVersion": "2025-06-18"}, "2025-06-18"),
        ({"protocolVersion": "x" * 1000}, "x" * 32),
        ({"protocolVersion": 7}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_answer_to_initialize_settles_the_version(value: object, version: str | None) -> None:
    assert negotiated_version({"result": value}) == version
