"""JSON-RPC messages of MCP: which requests a body holds, and how an answer ended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from pydantic_core import from_json

from otel_mcp.semconv import TOOL_ERROR

JsonId = str | int
"""0 and the empty string are ids; ``None`` is the absence of one."""

KNOWN_METHODS: Final = frozenset({
    "initialize", "ping", "server/discover", "logging/setLevel", "completion/complete",
    "tools/list", "tools/call", "prompts/list", "prompts/get",
    "resources/list", "resources/templates/list", "resources/read", "resources/subscribe", "resources/unsubscribe",
    "subscriptions/listen", "tasks/get", "tasks/list", "tasks/cancel", "tasks/result", "tasks/update",
    "notifications/initialized", "notifications/cancelled", "notifications/progress",
    "notifications/roots/list_changed", "notifications/tasks/status",
})  # fmt: skip
"""Methods that a client sends; the bound of the metric attribute."""
CALLER_CODES: Final = frozenset({"-32700", "-32600", "-32601", "-32602", "-32002"})
"""JSON-RPC errors that are the caller's fault: a server that answers so has done its work."""
STREAMS: Final = frozenset({"subscriptions/listen"})
"""Requests that stay open on purpose: their duration says nothing."""
INPUT_REQUIRED: Final = "input_required"
"""Value of ``resultType`` where a result asks for input."""
_NOTHING: Final[Mapping[str, Any]] = {}
META_NAMESPACE: Final = "io.modelcontextprotocol/"


@dataclass(slots=True)
class Message:
    """One message of a client: a request, or a notification where `id` is ``None``."""

    method: str
    id: JsonId | None
    params: Mapping[str, Any]
    meta: Mapping[str, Any] = field(init=False, compare=False)
    target: str | None = field(init=False, compare=False, default=None)
    """Name of the tool or prompt that is asked for."""

    def __post_init__(self) -> None:
        _, self.target, self.meta = parts(self.method, None, self.params)


def parts(
    method: str, request_id: object, params: Mapping[str, Any]
) -> tuple[JsonId | None, str | None, Mapping[str, Any]]:
    """Return the id of a message, the name of the tool or prompt that it asks for, and its ``_meta``."""
    if type(request_id) is not int or not -_MAX_ID < request_id < _MAX_ID:
        request_id = json_id(request_id)
    target: Any = params.get("name") if method == "tools/call" or method == "prompts/get" else None
    if not isinstance(target, str):
        target = None
    elif len(target) > MAX_TEXT or not target.isascii():
        target = text(target)
    meta: Any = params.get("_meta")
    return request_id, target, cast("dict[str, Any]", meta) if isinstance(meta, dict) else _NOTHING


Failure = Literal["unknown_tool", "invalid_arguments", "tool", "exception", "cancelled", "refused"]
"""Kinds of failed tool calls: who has to change something."""


@dataclass(slots=True, frozen=True)
class Outcome:
    """How a request ended. All ``None`` = it worked."""

    error_type: str | None = None
    """``None`` also where a request failed by the caller's fault."""
    status_code: str | None = None
    """JSON-RPC error code, as text."""
    exception_type: str | None = None
    """Class that the tool raised; known where the dispatch seam saw it."""
    unclassified: bool = False
    """The answer could not be read, and no seam reported: not a success, not an error."""
    asks: str | None = None
    """It asks for input first: the ``requestState`` that the next round repeats, empty where it has none."""

    @property
    def failed(self) -> bool:
        """Whether the request failed, by whose fault ever."""
        return self.error_type is not None or self.status_code is not None


FINE: Final = Outcome()


def parse_head(data: bytes | bytearray) -> Message | None:
    """Parse the beginning of a body that is not whole: the method, and of the rest only what identifies it.

    ``None`` where the method comes later than what was read.
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
    return Message(text(method), json_id(fields.get("id")), {key: given[key] for key in _TELLING if key in given})


def parse_messages(body: bytes | bytearray | memoryview) -> list[Message]:
    """Parse requests and notifications of a POST body: none for a client's answer or for what is no JSON-RPC.

    Raises:
        ValueError: the body is not JSON.
    """
    decoded: Any = from_json(bytes(body) if isinstance(body, memoryview) else body)
    if isinstance(decoded, list):
        entries: Any = decoded[:_BATCH_LIMIT]  # pyright: ignore[reportUnknownVariableType]
        return [message for entry in entries if (message := _message(entry)) is not None]
    message = _message(decoded)
    return [] if message is None else [message]


_TELLING: Final = ("_meta", "name", "uri", "protocolVersion", "clientInfo")
"""Parameters that are read of a message too large to be read."""
_MAX_ID: Final = 2**63
MAX_TEXT: Final = 256
"""Characters of a stranger's name that are kept."""
PLAIN_IDS: Final = range(2**63)
"""Numbers that are ids as they stand."""
_BATCH_LIMIT: Final = 100
"""Messages read of one batch; servers refuse batches, so this bounds only hostile input."""


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
    """Keep at most `limit` characters of a stranger's text, replacing what UTF-8 cannot hold.

    JSON may name half of a surrogate pair. An exporter cannot send such a text,
    and some drop a whole batch for it.
    """
    if len(value) > limit:
        value = value[:limit]
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def json_id(value: object) -> JsonId | None:
    """Return a JSON-RPC id, or ``None`` for anything that cannot be one (true is no id)."""
    if type(value) is int:
        return value if -_MAX_ID < value < _MAX_ID else str(value)[:256]
    return text(value) if isinstance(value, str) else None


def is_handshake(params: Mapping[str, Any]) -> bool:
    """Return whether the parameters of ``initialize`` have all that the protocol requires."""
    client = params.get("clientInfo")
    named = isinstance(client, dict) and all(
        isinstance(cast(dict[str, Any], client).get(name), str) for name in ("name", "version")
    )
    return named and isinstance(params.get("protocolVersion"), str) and isinstance(params.get("capabilities"), dict)


def is_mcp(message: Message) -> bool:
    """Return whether a JSON-RPC message is MCP and not, say, LSP or A2A."""
    if message.method == "initialize":
        return isinstance(message.params.get("protocolVersion"), str)
    if any(key.startswith(META_NAMESPACE) for key in message.meta):
        return True
    return message.method in _UNAMBIGUOUS or message.method.startswith("notifications/")


_UNAMBIGUOUS: Final = frozenset(
    method for method in KNOWN_METHODS if not method.startswith("tasks/")
)  # fmt: skip


def parse_replies(data: bytes | bytearray) -> list[Mapping[str, Any]]:
    """Parse the JSON-RPC objects of an answer: one, or those of a batch; none if it is something else.

    Raises:
        ValueError: the data is not JSON.
    """
    decoded: Any = from_json(data)
    entries = cast(list[Any], decoded[:_BATCH_LIMIT]) if isinstance(decoded, list) else [decoded]
    return [cast(dict[str, Any], entry) for entry in entries if isinstance(entry, dict)]


_RESULT: Final = re.compile(rb'\{"jsonrpc":"2\.0","id":(?:(\d{1,18})|"([^"\\]{1,128})"),"result":')


def result_id(data: bytes | bytearray) -> JsonId | None:
    """Return the id of an answer that is a result, known by how the message begins; ``None`` = it has to be parsed."""
    if (begins := _RESULT.match(data)) is None:
        return None
    return int(begins[1]) if begins[1] is not None else begins[2].decode("utf-8", "replace")


def outcome_of(reply: Mapping[str, Any]) -> Outcome | None:
    """Read from an answer how the request ended; ``None`` if this is no answer."""
    error = reply.get("error")
    if isinstance(error, dict):
        return error_outcome(cast(dict[str, Any], error).get("code"))
    if "result" not in reply:
        return None
    return result_outcome(reply["result"])


def error_outcome(code: object) -> Outcome:
    """Make the outcome of a JSON-RPC error: its code is also the error type where the server is to blame."""
    text_of_code = str(code) if isinstance(code, int) and not isinstance(code, bool) and abs(code) < 10**9 else "0"
    return Outcome(error_type=None if text_of_code in CALLER_CODES else text_of_code, status_code=text_of_code)


def protocol_error(error: BaseException) -> int | None:
    """Return the code of an exception that is an error of the protocol."""
    code = getattr(getattr(error, "error", None), "code", None)
    return code if isinstance(code, int) else None


def result_outcome(result: object) -> Outcome:
    """Make the outcome of a JSON-RPC result, which may still say that the tool failed."""
    if not isinstance(result, dict):
        return FINE
    fields = cast("dict[str, Any]", result)
    if fields.get("isError") is True:
        return Outcome(TOOL_ERROR)
    return asking(fields) if fields.get("resultType") == INPUT_REQUIRED else FINE


def asking(result: object) -> Outcome:
    """Make the outcome of a result, dictionary or model, that asks for input before there can be a real one."""
    state = field_of(result, "requestState" if isinstance(result, Mapping) else "request_state")
    return Outcome(asks=state if isinstance(state, str) else "")


def negotiated_version(reply: Mapping[str, Any]) -> str | None:
    """Read the protocol version that the answer to ``initialize`` settles on."""
    result = reply.get("result")
    version = cast(dict[str, Any], result).get("protocolVersion") if isinstance(result, dict) else None
    return text(version, 32) if isinstance(version, str) else None


def listed_names(result: object, kind: str) -> list[str]:
    """Read the names in the result of a listing, of ``tools`` or ``prompts``: as dictionary or model."""
    listed = field_of(result, kind)
    if not isinstance(listed, list):
        return []
    entries = (field_of(entry, "name") for entry in cast(list[object], listed))
    return [name for name in entries if isinstance(name, str)]


def field_of(value: object, name: str) -> object:
    """Read a field of what may be a dictionary or a model."""
    return cast(Mapping[str, object], value).get(name) if isinstance(value, Mapping) else getattr(value, name, None)
