"""Joins rounds of one logical call with those that the document of their session has. No I/O.

``flush.lua`` puts the whole in the place of the lines that it takes along, unless the document has changed in between:
then the sender looks again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from pydantic import ValidationError

from otel_mcp.model.delta import CallRecord
from otel_mcp.model.rounds import add_calls
from otel_mcp.model.state import ToolCall
from otel_mcp.store import document as text

_MARK: Final = re.compile(r'"(?:answers|waiting)":"[0-9A-Za-z]+"')
"""In the line of a call, what `_marks` makes."""


class Joined(NamedTuple):
    """Calls of a flush, as they are to be written."""

    calls: list[CallRecord]
    taken: Sequence[str] = ()
    """Lines of the document that they replace."""
    absent: Sequence[str] = ()
    """Texts of lines that they would have to replace, if there were any."""
    waits: Sequence[tuple[str, float]] = ()
    """Inputs that calls had waited for and that have come: tool and seconds."""


def join(document: object, calls: Sequence[CallRecord]) -> Joined:
    """Join the newest calls of a session with those in its document, where one answers what the other waits for."""
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
    # What stays though it has such a mark, as input that came before it was asked for, is known to be there.
    left = {mark for call in before if id(call) in stay for mark in _MARK.findall(held[id(call)])}
    absent = [mark for call in new for mark in _marks(call) if mark not in left]
    return Joined(new, taken, absent, waits)


def _marks(call: CallRecord) -> list[str]:
    """Return the texts by which the round before a call is known, and the one after it."""
    marks = (("waiting", call.answers), ("answers", call.waiting))
    return [f'"{name}":"{key}"' for name, key in marks if key is not None]


def _read(line: str) -> CallRecord | None:
    try:
        return text.record(ToolCall.model_validate_json(line))
    except ValidationError:
        return None  # Another part of the document, or not of ours.
