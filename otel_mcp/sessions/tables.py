"""What the processes of a service tell each other in small tables of the store."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from pydantic_core import to_json

from otel_mcp.model.delta import OpenCall
from otel_mcp.store.base import ABANDONED, Change, ProducerId, SessionStore

KNOWN: Final = 86_400.0
"""Seconds that a catalogue which nobody lists is not news again."""
CATALOGUES: Final = 32
"""Catalogues that are known at most: those that were listed last."""
IN_FLIGHT_KEPT: Final = 10.0
"""Seconds that calls in flight count where their process does not say so again: it may be gone."""
_GONE_KEPT: Final = 3600.0
"""Seconds for which it is known of a process that it has ended."""
_MOST_GONE: Final = 64
_PROCESSES: Final = 1000
_TRIES: Final = 5
"""Times that an entry is put where others do so at the same moment."""


class Entry(NamedTuple):
    """One entry: newer ones are greater."""

    at: float
    """Unix seconds, by the clock of the store."""
    name: str
    text: str


async def put(
    store: SessionStore,
    table: str,
    name: str,
    text: str | None,
    *,
    most: int,
    kept: float,
    aged: float | None = None,
    alone: bool = False,
) -> list[Entry]:
    """Put an entry into a table as of now, or take it out where `text` is ``None``.

    Args:
        store: has the table.
        table: its name.
        name: of the entry.
        text: its new text.
        most: how many there are at most; the oldest make room.
        kept: seconds that the table is kept.
        aged: seconds after which an entry is taken out; left out, none is for its age.
        alone: leave the other entries unread, unless there are too many.

    Returns:
        What was there before, as far as it was read, the newest first.
    """
    held, entries, now = dict[str, str](), list[Entry](), 0.0
    for _ in range(_TRIES):
        held, now = await store.entries(table, (name,) if alone else None), time.time() + store.ahead
        alone = False
        entries = sorted(_entries(held.items()), reverse=True)
        others = [entry for entry in entries if entry.name != name]
        stay = {entry.name for entry in others[: most - 1] if aged is None or entry.at > now - aged}
        gone = [other for other in held if other not in stay and other != name]
        changes = {other: Change(held[other], None) for other in gone}
        changes[name] = Change(held.get(name), None if text is None else f"{now * 1e6:.0f} {text}")
        if name not in await store.swap(table, changes, most, kept):
            break
    return entries


def _entries(held: Iterable[tuple[str, str]]) -> Iterable[Entry]:
    for name, known in held:
        at, _, text = known.partition(" ")
        if at.isdecimal():  # Else something else has written there.
            yield Entry(int(at) / 1e6, name, text)


async def meet(store: SessionStore, digest: str, summary: str) -> list[str]:
    """Note that the catalogue of this digest is listed, with what is to be known of it.

    Returns:
        The summaries of the others that are known, newest first, where this one is new: it was not listed within
        `KNOWN`, and another was listed since. Else, and where it is the first, none.
    """
    entries = await put(store, "catalogues", digest, summary, most=CATALOGUES, kept=ABANDONED)
    others = [entry for entry in entries if entry.name != digest]
    last = next((entry.at for entry in entries if entry.name == digest), None)
    now = time.time() + store.ahead
    is_known = last is not None and (not others or last >= others[0].at or now - last < KNOWN)
    return [] if is_known else [entry.text for entry in others[: CATALOGUES - 1]]


async def put_in_flight(
    store: SessionStore, process: ProducerId, calls: Sequence[OpenCall], *, again: bool = False
) -> None:
    """Note which calls a process has in flight, for others to read in the next seconds; none = no longer any.

    Entries of processes that are gone are taken out only by one that does so for the first time, not `again`: each of
    many processes does so each second.
    """
    known = to_json([call._asdict() for call in calls]).decode() if calls else None
    bounds = {"kept": IN_FLIGHT_KEPT, "aged": IN_FLIGHT_KEPT}
    await put(store, "in_flight", process.token, known, most=_PROCESSES, alone=again, **bounds)


async def leave(store: SessionStore, process: ProducerId) -> None:
    """Note that a process ends: what it has served is not at another replica."""
    await put(store, "gone", process.token, "", most=_MOST_GONE, kept=_GONE_KEPT, aged=_GONE_KEPT)


async def gone(store: SessionStore) -> list[str]:
    """Return the processes that have ended not long ago."""
    since = time.time() + store.ahead - _GONE_KEPT
    return [entry.name for entry in _entries((await store.entries("gone")).items()) if entry.at > since]
