"""Parse JSON-RPC messages of MCP: the requests in a body, and the outcome in an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from pydantic_core import from_json

from otel_mcp.semconv import TOOL_ERROR

JsonId = str | int
"""Includes 0 and the empty string; ``None`` = no id."""

KNOWN_METHODS: Final = frozenset({
    "initialize", "ping", "server/discover", "logging/setLevel", "completion/complete",
    "tools/list", "tools/call", "prompts/list", "prompts/get",
    "resources/list", "resources/templates/list", "resources/read", "resources/subscribe", "resources/unsubscribe",
    "subscriptions/listen", "tasks/get", "tasks/list", "tasks/cancel", "tasks/result", "tasks/update",
    "notifications/initialized", "notifications/cancelled", "notifications/progress",
    "notifications/roots/list_changed", "notifications/tasks/status",
})  # fmt: skip
"""Methods that a client sends; any other is ``_OTHER`` on metrics."""
CALLER_CODES: Final = frozenset({"-32700", "-32600", "-32601", "-32602", "-32002"})
"""Codes of JSON-RPC errors that are the caller's fault."""
STREAMS: Final = frozenset({"subscriptions/listen"})
"""Requests that stay open on purpose, so that their duration is not measured."""
INPUT_REQUIRED: Final = "input_required"
"""The ``resultType`` of a result that asks for input."""
_EMPTY: Final[Mapping[str, Any]] = {}
META_NAMESPACE: Final = "io.modelcontextprotocol/"


@dataclass(slots=True)
class Message:
    """One message of a client: a request, or a notification where `id` is ``None``."""

    method: str
    id: JsonId | None
    params: Mapping[str, Any]
    meta: Mapping[str, Any] = field(init=False, compare=False)
    target: str | None = field(init=False, compare=False, default=None)
    """Name of the requested tool or prompt."""

    def __post_init__(self) -> None:
        _, self.target, self.meta = parts(self.method, None, self.params)


def parts(
    method: str, request_id: object, params: Mapping[str, Any]
) -> tuple[JsonId | None, str | None, Mapping[str, Any]]:
    """Return the id of a message, the name of the requested tool or prompt, and its ``_meta``."""
    if type(request_id) is not int or not -_MAX_ID < request_id < _MAX_ID:
        request_id = json_id(request_id)
    target: Any = params.get("name") if method == "tools/call" or method == "prompts/get" else None
    if not isinstance(target, str):
        target = None
    elif len(target) > MAX_TEXT or not target.isascii():
        target = text(target)
    meta: Any = params.get("_meta")
    return request_id, target, cast("dict[str, Any]", meta) if isinstance(meta, dict) else _EMPTY


Failure = Literal["unknown_tool", "invalid_arguments", "tool", "exception", "cancelled", "refused"]
"""Kinds of failed tool calls."""


@dataclass(slots=True, frozen=True)
class Outcome:
    """How a request ended; all ``None`` = success."""

    error_type: str | None = None
    """``None`` also if the failure is the caller's fault."""
    status_code: str | None = None
    """JSON-RPC error code, as text."""
    exception_type: str | None = None
    """Class of the exception that the tool raised, if a patch saw it."""
    unclassified: bool = False
    """The answer could not be read and no patch reported an outcome: neither success nor error."""
    asks: str | None = None
    """Set if the result asks for input: the ``requestState`` that the next round repeats, empty without one."""

    @property
    def failed(self) -> bool:
        """Whether the request failed, by the caller's fault or the server's."""
        return self.error_type is not None or self.status_code is not None


FINE: Final = Outcome()


def parse_head(data: bytes | bytearray) -> Message | None:
    """Parse the method and a few parameters from the beginning of a body.

    ``None`` = `data` ends before the method.
    """
    try:
        decoded: Any = from_json(bytes(data), allow_partial=True)
    except ValueError:
        return None
    fields = cast("dict[str, Any]", decoded) if isinstance(decoded, dict) else {}
    method: object = fields.get("method")
    if not isinstance(method, str) or fields.get("jsonrpc", "2.0") != "2.0":
        return None
    params: object = fields.get("params")
    given = cast("dict[str, Any]", params) if isinstance(params, dict) else {}
    return Message(text(method), json_id(fields.get("id")), {key: given[key] for key in _HEAD_PARAMS if key in given})


def parse_messages(body: bytes | bytearray | memoryview) -> list[Message]:
    """Parse the requests and notifications in the body of a POST; answers and other JSON are left out.

    Raises:
        ValueError: the body is not JSON.
    """
    decoded: Any = from_json(bytes(body) if isinstance(body, memoryview) else body)
    if isinstance(decoded, list):
        entries: Any = decoded[:_MAX_BATCH]  # pyright: ignore[reportUnknownVariableType]
        return [message for entry in entries if (message := _message(entry)) is not None]
    message = _message(decoded)
    return [] if message is None else [message]


_HEAD_PARAMS: Final = ("_meta", "name", "uri", "protocolVersion", "clientInfo")
"""Parameters that are read of a message too large to be parsed whole."""
_MAX_ID: Final = 2**63
MAX_TEXT: Final = 256
"""Characters of a stranger's text that are kept."""
PLAIN_IDS: Final = range(2**63)
"""Numbers that are kept as ids unchanged."""
_MAX_BATCH: Final = 100
"""Messages of one batch that are read; servers refuse batches, so only hostile input is longer."""


def _message(entry: Any) -> Message | None:
    fields = entry
    if not isinstance(entry, dict):
        return None
    method = fields.get("method")
    if fields.get("jsonrpc") != "2.0" or not isinstance(method, str):
        return None
    params: Any = fields.get("params")
    request_id = json_id(fields.get("id"))
    return Message(text(method), request_id, params if type(params) is dict else {})  # pyright: ignore[reportUnknownArgumentType]


def text(value: str, limit: int = MAX_TEXT) -> str:
    """Cut a stranger's text to `limit` characters, and replace lone surrogates.

    JSON allows lone surrogates, but UTF-8 does not: for one, some exporters drop
    a whole batch.
    """
    if len(value) > limit:
        value = value[:limit]
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def json_id(value: object) -> JsonId | None:
    """Return a JSON-RPC id; ``None`` = not a string or an integer (booleans are not ids)."""
    if type(value) is int:
        return value if -_MAX_ID < value < _MAX_ID else str(value)[:256]
    return text(value) if isinstance(value, str) else None


def other_form(request_id: JsonId) -> JsonId | None:
    """Return an id as text if it is a number, and as a number if it is one in text; ``None`` = other text.

    Some servers answer with the other one (the SDK 1.9 makes numbers of digits), and the clients of the Python and
    TypeScript SDKs accept that.
    """
    if isinstance(request_id, int):
        return str(request_id)
    return int(request_id) if len(request_id) < 19 and request_id.isascii() and request_id.isdecimal() else None


def is_handshake(params: Mapping[str, Any]) -> bool:
    """Return whether the parameters of ``initialize`` are complete."""
    client = params.get("clientInfo")
    named = isinstance(client, dict) and all(
        isinstance(cast(dict[str, Any], client).get(name), str) for name in ("name", "version")
    )
    return named and isinstance(params.get("protocolVersion"), str) and isinstance(params.get("capabilities"), dict)


def is_mcp(message: Message) -> bool:
    """Return whether a JSON-RPC message is MCP, and not LSP or A2A, for example."""
    if message.method == "initialize":
        return isinstance(message.params.get("protocolVersion"), str)
    if any(key.startswith(META_NAMESPACE) for key in message.meta):
        return True
    return message.method in _UNAMBIGUOUS or message.method.startswith("notifications/")


_UNAMBIGUOUS: Final = frozenset(method for method in KNOWN_METHODS if not method.startswith("tasks/"))


def parse_replies(data: bytes | bytearray) -> list[Mapping[str, Any]]:
    """Parse the JSON-RPC objects of an answer, one or a batch; other JSON gives none.

    Raises:
        ValueError: the data is not JSON.
    """
    decoded: Any = from_json(data)
    entries = cast(list[Any], decoded[:_MAX_BATCH]) if isinstance(decoded, list) else [decoded]
    return [cast(dict[str, Any], entry) for entry in entries if isinstance(entry, dict)]


_RESULT: Final = re.compile(rb'\{"jsonrpc":"2\.0","id":(?:(\d{1,18})|"([^"\\]{1,128})"),"result":')


def result_id(data: bytes | bytearray) -> JsonId | None:
    """Return the id of an answer whose first bytes show that it is a result; ``None`` = parse the answer."""
    if (head := _RESULT.match(data)) is None:
        return None
    return int(head[1]) if head[1] is not None else head[2].decode("utf-8", "replace")


def outcome_of(reply: Mapping[str, Any]) -> Outcome | None:
    """Return the outcome in an answer; ``None`` = not an answer."""
    error = reply.get("error")
    if isinstance(error, dict):
        return error_outcome(cast(dict[str, Any], error).get("code"))
    if "result" not in reply:
        return None
    return result_outcome(reply["result"])


def error_outcome(code: object) -> Outcome:
    """Make the outcome of a JSON-RPC error; its code is also the error type unless the caller is at fault."""
    text_of_code = str(code) if isinstance(code, int) and not isinstance(code, bool) and abs(code) < 10**9 else "0"
    return Outcome(error_type=None if text_of_code in CALLER_CODES else text_of_code, status_code=text_of_code)


def protocol_error(error: BaseException) -> int | None:
    """Return the JSON-RPC code of an exception of the SDK; ``None`` = it has none."""
    code = getattr(getattr(error, "error", None), "code", None)
    return code if isinstance(code, int) else None


def result_outcome(result: object) -> Outcome:
    """Make the outcome of a JSON-RPC result, which may report that the tool failed."""
    if not isinstance(result, dict):
        return FINE
    fields = cast("dict[str, Any]", result)
    if fields.get("isError") is True:
        return Outcome(TOOL_ERROR)
    return asking(fields) if fields.get("resultType") == INPUT_REQUIRED else FINE


def asking(result: object) -> Outcome:
    """Make the outcome of a result, dictionary or model, that asks for input."""
    state = field_of(result, "requestState" if isinstance(result, Mapping) else "request_state")
    return Outcome(asks=state if isinstance(state, str) else "")


def negotiated_version(reply: Mapping[str, Any]) -> str | None:
    """Read the protocol version in the answer to ``initialize``."""
    result = reply.get("result")
    version = cast(dict[str, Any], result).get("protocolVersion") if isinstance(result, dict) else None
    return text(version, 32) if isinstance(version, str) else None


def listed_names(result: object, kind: str) -> list[str]:
    """Read the names in the list `kind`, ``tools`` or ``prompts``, of a result, dictionary or model."""
    listed = field_of(result, kind)
    if not isinstance(listed, list):
        return []
    entries = (field_of(entry, "name") for entry in cast(list[object], listed))
    return [name for name in entries if isinstance(name, str)]


def field_of(value: object, name: str) -> object:
    """Read a field of a dictionary or a model."""
    return cast(Mapping[str, object], value).get(name) if isinstance(value, Mapping) else getattr(value, name, None)
