"""Shares small tables between the processes of a service: catalogues, calls in flight, ended processes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from pydantic_core import to_json

from otel_mcp.model.delta import OpenCall
from otel_mcp.store.base import ABANDONED, Change, ProducerId, SessionStore

KNOWN: Final = 86_400.0
"""Seconds for which an unlisted catalogue stays known, so that it is not reported again."""
CATALOGUES: Final = 32
"""Maximum number of known catalogues: those listed last."""
IN_FLIGHT_KEPT: Final = 10.0
"""Seconds after which calls in flight expire unless their process writes them again."""
_GONE_KEPT: Final = 3600.0
"""Seconds for which an ended process is listed."""
_MOST_GONE: Final = 64
_PROCESSES: Final = 1000
_TRIES: Final = 5
"""Attempts to put an entry while other processes change the table."""


class Entry(NamedTuple):
    """One entry of a table; newer ones compare greater."""

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
    """Put an entry into a table with the current time, or remove it if `text` is ``None``.

    Args:
        store: the store.
        table: name of the table.
        name: name of the entry.
        text: new text of the entry.
        most: maximum number of entries; the oldest are removed.
        kept: seconds for which the table is kept.
        aged: seconds after which entries are removed; by default, never.
        alone: do not read the other entries at the first attempt.

    Returns:
        The entries before, as far as they were read, newest first.
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
        if at.isdecimal():  # Otherwise another program has written it.
            yield Entry(int(at) / 1e6, name, text)


async def meet(store: SessionStore, digest: str, summary: str) -> list[str]:
    """Note that the catalogue with this digest is listed.

    Returns:
        If this catalogue is new, the summaries of the other known ones, newest first; otherwise none.
        It is new if it was not listed within `KNOWN` seconds and another one was listed since.
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
    """Publish the calls that a process has in flight for `IN_FLIGHT_KEPT` seconds; without calls, remove its entry.

    Expired entries of other processes are removed only by the first write, not `again`: reading the whole table
    each second in every process would cost too much.
    """
    known = to_json([call._asdict() for call in calls]).decode() if calls else None
    bounds = {"kept": IN_FLIGHT_KEPT, "aged": IN_FLIGHT_KEPT}
    await put(store, "in_flight", process.token, known, most=_PROCESSES, alone=again, **bounds)


async def leave(store: SessionStore, process: ProducerId) -> None:
    """Note that a process ends, so that its transport sessions are not taken for those of a live replica."""
    await put(store, "gone", process.token, "", most=_MOST_GONE, kept=_GONE_KEPT, aged=_GONE_KEPT)


async def gone(store: SessionStore) -> list[str]:
    """Return the tokens of the processes that ended within the last hour."""
    since = time.time() + store.ahead - _GONE_KEPT
    return [entry.name for entry in _entries((await store.entries("gone")).items()) if entry.at > since]
