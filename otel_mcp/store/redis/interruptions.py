"""Which sessions were cut by a server that knew them no longer, and which client is back, in Redis.

The mark lies with the session, so each cut, and each way back, is given to one process. Apart from it
there is a short list of each visitor: its sessions that were cut.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Any, Final

from otel_mcp.model.delta import SessionFacts
from otel_mcp.model.session import LOST, Interruption, Refusal, Return
from otel_mcp.store.base import ProducerId
from otel_mcp.store.redis.client import RedisLink, Run, is_foreign, outage, put_recent, recent
from otel_mcp.store.redis.codec import AT_END, Keys, Writer, script, text_of

_CUT: Final = script("cut")
_BACK: Final = script("back")
_MOST_CUT: Final = 1000
"""Sessions of one visitor: a gateway may hold very many."""


class Interruptions:
    """Marks and lists of one service."""

    def __init__(self, link: RedisLink, keys: Keys, writer: Writer, process: ProducerId) -> None:
        self._link = link
        self._keys = keys
        self._writer = writer
        self._process = process

    async def cut(self, refusals: Sequence[Refusal], gone: Sequence[str]) -> list[Interruption]:
        """Mark the sessions that these refusals have cut; return those that nobody had marked."""
        start, token, owner = self._writer.instant(self._process.started_at), self._process.token, self._writer.owner
        runs = [
            Run(
                _CUT,
                self._keys.session(each.session_id),
                (
                    self._writer.instant(each.at),
                    start,
                    token,
                    "" if each.served is None else int(each.served),
                    owner,
                    each.user or "",
                    *gone,
                ),
            )
            for each in refusals
        ]
        found: list[Interruption] = []
        listed: list[Run] = []
        for refusal, reply in zip(refusals, await self._all(runs), strict=True):
            if reply is None:
                continue
            cause, visitor, created, limit, calls, *labels = reply
            facts = _facts(refusal.session_id, created, limit, labels)
            found.append(Interruption(facts, refusal.at, cause.decode("utf-8", "replace"), int(calls) > 0))
            if visitor is not None:
                key = self._keys.agreement(f"cut:{text_of(visitor)}")
                at = self._writer.instant(refusal.at)
                listed += put_recent(key, refusal.session_id, at, _MOST_CUT, LOST)
        if listed:
            await self._all(listed)
        return found

    async def back(self, visitor: str, at: float, session_id: str) -> Return | None:
        """Have the first of a visitor's sessions that were cut be continued by `session_id`, begun at `at`."""
        key = self._keys.agreement(f"cut:{visitor}")
        arguments = (self._writer.instant(at), self._writer.owner, f"{zlib.crc32(session_id.encode()):08x}")
        (found,) = await self._all([recent(key, self._writer.instant(time.time()), LOST)])
        for cut in found or ():
            name = cut.decode("utf-8", "replace")
            (reply,) = await self._all([Run(_BACK, self._keys.session(name), arguments)])
            if reply is None:
                await self._link.run(Run("ZREM", (key,), (cut,)))
            else:  # Stays in the list, since this answer may be lost: the next one who asks takes it out.
                since, over, user, created, limit, *labels = reply
                facts = _facts(name, created, limit, labels)
                facts.principal = text_of(user)
                return Return(facts, int(since) / 1e6, bool(over))
        return None

    async def _all(self, runs: Sequence[Run]) -> list[Any]:
        """Run scripts; what came upon a key that is not ours has found nothing."""
        results = await self._link.run_all(runs)
        for at, result in enumerate(results):
            if isinstance(result, Exception):
                if not is_foreign(result):
                    raise outage(result) or result
                results[at] = None
        return results


def _facts(session_id: str, created: bytes, limit: bytes, labels: Sequence[bytes | None]) -> SessionFacts:
    facts = SessionFacts(session_id, int(created) / 1e6, int(limit) / 1e6)
    for name, label in zip(AT_END, labels, strict=True):
        setattr(facts, name, text_of(label))
    return facts
