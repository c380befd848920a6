"""The JSON text of which documents are made: always valid, whatever strangers sent.

Everything from outside is clipped, and what UTF-8 or JSON cannot hold is
replaced. Text of ours has no raw newline: the scripts find calls by them.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from json.encoder import encode_basestring
from typing import Any, Final, NamedTuple, cast

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from otel_mcp.model.delta import FACTS, CallRecord, SessionFacts
from otel_mcp.model.rounds import add_calls
from otel_mcp.model.state import ToolCall

logger = logging.getLogger("otel_mcp")

CLIP: Final = 1024
"""Characters of a name, an id or a user agent that are kept."""
CONTENT: Final = 65_536
"""Characters of the JSON of arguments, of a result or an attribute; longer ones become a clipped string."""
_TEXTS: Final = ("error_type", "failure", "arguments_digest", "trace_id", "span_id", "service_instance_id", "task")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = 253402300799_000000
"""Microseconds until the end of the year 9999."""
_MARK: Final = re.compile(r'"(?:answers|waiting)":"[0-9A-Za-z]+"')
"""Matches the output of `_marks` in the line of a call."""


def micros(seconds: float) -> int:
    """Convert to microseconds of Unix time, limited to the years 1970 to 9999."""
    return min(max(round(seconds * 1_000_000), 0), _LAST) if math.isfinite(seconds) else 0


@lru_cache(maxsize=8)
def _second(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")


def iso(instant: int) -> str:
    """Format microseconds of Unix time as 27 characters of UTC; these sort by time."""
    second, rest = divmod(instant, 1_000_000)
    return f"{_second(second)}.{rest:06d}Z"


def seconds(moment: datetime) -> float:
    """Convert a moment to Unix seconds; one without a zone is UTC."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def moment(instant: float) -> datetime:
    """Convert Unix seconds to a moment."""
    return _EPOCH + timedelta(microseconds=micros(instant))


def utf8(text: str) -> bytes:
    """Encode `text`; half surrogate pairs become question marks."""
    return text.encode("utf-8", "replace")


def clip(text: str, limit: int = CLIP) -> str:
    """Clip text to the form in which a document returns it."""
    return utf8(text[:limit]).decode()


def string(value: str, limit: int = CLIP) -> str:
    """Write the JSON text of a string, clipped."""
    return encode_basestring(value if len(value) <= limit else value[:limit])


def content(value: object) -> str:
    """Write the JSON text of arguments or a result; ``null`` if it could not be read back."""
    try:
        text = to_json(value, inf_nan_mode="null", serialize_unknown=True).decode()
    except (ValueError, TypeError, RecursionError):
        text = _plain(value)
    try:
        from_json(utf8(text))
    except ValueError:
        return "null"
    return text if len(text) <= CONTENT else string(text, CONTENT)


def _plain(value: object) -> str:
    """Write it with `json`, which does not reject half surrogate pairs."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
        return to_json(from_json(utf8(text)), inf_nan_mode="null").decode()
    except (TypeError, ValueError, RecursionError):
        return "null"


def call(made: CallRecord) -> str:
    """Write the JSON text of one tool call."""
    request_id = made.request_id
    parts = [f'{{"tool_name":{string(made.tool_name)}']
    if isinstance(request_id, str):
        parts.append(f',"request_id":{string(request_id)}')
    elif request_id is not None:
        plain = -(2**63) <= request_id < 2**64
        parts.append(f',"request_id":{int(request_id)}' if plain else ',"request_id":"_OTHER"')
    duration = made.duration if math.isfinite(made.duration) else 0.0
    parts.append(f',"started_at":"{iso(micros(made.started_at))}","duration":{round(duration, 6)!r}')
    for name in _TEXTS:
        value = getattr(made, name)
        if value is not None:
            parts += (f',"{name}":{string(value)}',)
    if made.result_bytes is not None:
        parts.append(f',"result_bytes":{int(made.result_bytes)}')
    if made.arguments is not None:
        parts.append(f',"arguments":{content(made.arguments)}')
    if made.result is not None:
        parts.append(f',"result":{content(made.result)}')
    if made.rounds > 1 or made.answers or made.waiting:
        parts.append(_rounds(made))
    return f"{''.join(parts)}}}"


def _rounds(made: CallRecord) -> str:
    """Write the fields that connect rounds."""
    text = f',"rounds":{made.rounds},"input_wait":{max(made.input_wait, 0.0):.6f}' if made.rounds > 1 else ""
    text += f',"answers":{string(made.answers, 16)}' if made.answers else ""
    return text + (f',"waiting":{string(made.waiting, 16)}' if made.waiting else "")


def tool_call(made: CallRecord) -> ToolCall:
    """Return a tool call in the form of the document."""
    return ToolCall.model_validate_json(utf8(call(made)))


def record(kept: ToolCall) -> CallRecord:
    """Make the record of a call in a document, as the request path would make it."""
    values: dict[str, Any] = {each.name: getattr(kept, each.name) for each in fields(CallRecord)}
    values["started_at"] = seconds(kept.started_at)
    return CallRecord(**values)


def facts(known: SessionFacts, service: str) -> str:
    """Write the JSON object of the facts; the first part of a document."""
    text = f'{{"session_id":{string(known.session_id)},"service":{string(service)}'
    for fact in FACTS:
        value = getattr(known, fact.name)
        if value:
            text += f',"{fact.name}":{string(value, fact.limit)}'
    return text + "}"


def known(facts: SessionFacts) -> dict[str, str]:
    """Return the facts as a document returns them: clipped."""
    return {fact.name: clip(value, fact.limit) for fact in FACTS if (value := getattr(facts, fact.name))}


def attributes(values: dict[str, Any], extras: dict[str, Any] | None) -> str:
    """Write the second part of a document, which only ``save()`` changes."""
    parts = [f',"attributes":{_object(values)}']
    for name, value in (extras or {}).items():
        parts.append(f",{_attribute(name, value)}")
    return "".join(parts)


def _object(values: object) -> str:
    if not isinstance(values, dict):
        _warn_once()
        return "{}"
    return "{" + ",".join(_attribute(*each) for each in cast("dict[object, object]", values).items()) + "}"


def _attribute(name: object, value: object) -> str:
    """Write one attribute, clipped by itself; a clipped string does not change if it is written again."""
    if isinstance(value, str):
        is_whole, written = len(value) <= CONTENT, string(value, CONTENT)
    else:
        written = content(value)
        is_whole = len(written) <= CONTENT and (written != "null" or value is None)
    if not is_whole:
        _warn_once()
    return f"{string(str(name))}:{written}"


@cache
def _warn_once() -> None:
    logger.warning(
        "otel_mcp: an attribute of a session is changed: it is clipped to %d characters of JSON, "
        "or null if it cannot be written as JSON; the same applies to later ones",
        CONTENT,
    )


class Joined(NamedTuple):
    """Calls of a flush in the form to write."""

    calls: list[CallRecord]
    taken: Sequence[str] = ()
    """Lines of the document that they replace."""
    absent: Sequence[str] = ()
    """Texts in lines that they would have to replace, if any existed."""
    waits: Sequence[tuple[str, float]] = ()
    """Waits for input that are over: tool and seconds."""


def join(document: object, calls: Sequence[CallRecord]) -> Joined:
    """Join the newest calls of a session with those in its document if one brings the input that the other waits for.

    ``flush.lua`` replaces those lines by the joined calls, unless the document has changed in between: then the
    sender reads it again.
    """
    wanted = {mark for call in calls for mark in _marks(call)}
    lines = document.decode("utf-8", "replace").split("\n") if isinstance(document, bytes) and wanted else ()
    held: dict[int, str] = {}
    joined: list[CallRecord] = []
    for line in lines:
        if not wanted.isdisjoint(_MARK.findall(line)) and (known := _read(line := line.removesuffix(","))) is not None:
            joined.append(known)
            held[id(known)] = line
    before = list(joined)
    waits = add_calls(joined, calls)
    stay = {id(call) for call in joined}
    new = [call for call in joined if id(call) not in held]
    taken = [held[id(call)] for call in before if id(call) not in stay]
    # Lines that stay though they have such a mark, as for input that came before it was asked for, are expected.
    left = {mark for call in before if id(call) in stay for mark in _MARK.findall(held[id(call)])}
    absent = [mark for call in new for mark in _marks(call) if mark not in left]
    return Joined(new, taken, absent, waits)


def _marks(call: CallRecord) -> list[str]:
    """Return the texts that identify the rounds before and after a call."""
    marks = (("waiting", call.answers), ("answers", call.waiting))
    return [f'"{name}":"{key}"' for name, key in marks if key is not None]


def _read(line: str) -> CallRecord | None:
    try:
        return record(ToolCall.model_validate_json(line))
    except ValidationError:
        return None  # Another part of the document, or another writer's.
