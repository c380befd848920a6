"""Keys and scripts, their arguments and replies. No I/O."""

from __future__ import annotations

import re
import time
import zlib
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, NamedTuple, get_args

from otel_mcp.model.delta import FACTS, Flush, SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.session import LOST
from otel_mcp.model.state import SessionState
from otel_mcp.model.verdict import SessionOutcome
from otel_mcp.store import document as text
from otel_mcp.store.base import ABANDONED, BRIEF, GRACE, ProducerId
from otel_mcp.store.document import Joined

LONGEST: Final = 315_360_000.0
"""Seconds, ten years: the longest limit and lifetime that still counts as a limit."""
LEASE: Final = 60.0
"""Seconds after which another process may claim an end that nobody acknowledged."""
CLAIMS: Final = 100_000_000_000
"""Seconds by which claims lie below deadlines in the same set: they do not count as live, and are read when over."""
CALLERS_KEPT: Final = 2 * 86_400_000
"""Milliseconds that the callers of a day are kept, from the last one that was new to a process."""
SKEW: Final = 2.0
"""Seconds by which our clock may differ from the server's, as with NTP; up to that, documents show our own time."""

AT_END: Final = tuple(fact.name for fact in FACTS if fact.at_end)
_TAG: Final = re.compile(r"\{([^}]+)\}")
_OUTCOMES: Final = get_args(SessionOutcome)
_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}\Z")


class Keys:
    """Names under one prefix and service. All keys of one session lie in one hash slot of a cluster.

    The key of a document has no braces of its own, so its whole name decides
    the slot, and the other keys carry that name as their hash tag. A prefix
    with a hash tag puts everything into one slot; other braces in a prefix
    would put the keys of a session into different slots and are removed.
    """

    __slots__ = (
        "_after", "_before", "_document", "_name", "deadlines", "service", "sweeper",
    )  # fmt: skip

    def __init__(self, prefix: str, service: str) -> None:
        tagged = _TAG.search(prefix)
        if not tagged:
            prefix = prefix.replace("{", "").replace("}", "")
        self._document = f"{prefix}mcp_session:"
        self._before, self._after = ("", "") if tagged else ("{", "}")
        self._name = service
        self.service = f"{prefix}otel_mcp:{service}:"
        self.deadlines = f"{self.service}deadlines"
        """Sorted set of sessions; scores: the Unix seconds at which they expire, or `claimed`, or a `mark`."""
        self.sweeper = f"{self.service}sweeper"
        """Names the process that looks for ends at present."""

    def session(self, session_id: str) -> tuple[str, str]:
        """Name the keys of a session: document and stats. Our own ids have no braces; ids from the public API may."""
        document = self._document + session_id.replace("{", "%7B").replace("}", "%7D")
        return document, f"{self._before}{document}{self._after}:stats"

    def successor(self, session_id: str) -> str:
        """Name the key of the id that continues a session, for this service."""
        return f"{self._before}{self.session(session_id)[0]}{self._after}:next:{self._name}"

    def visits(self, visitor: str) -> str:
        """Name the key of the times at which a visitor began sessions without a call."""
        return f"{self.service}visits:{visitor}"

    def callers(self, day: str) -> str:
        """Name the key of the callers of a day: a HyperLogLog, which counts them without storing them."""
        return f"{self.service}callers:{day}"

    def agreement(self, key: str) -> str:
        """Name the key of a value, or a table, that all replicas of the service share."""
        return self.service + key


def text_of(value: bytes | None) -> str | None:
    """Decode a value from Redis, which any writer may have set."""
    return None if value is None else value.decode("utf-8", "replace")


def agreed_id(value: bytes | None) -> str | None:
    """Return an id that replicas agreed on; ``None`` if the value is nothing that a replica writes.

    It is sent in a header, and somebody who can write to Redis must not control our responses.
    """
    found = "" if value is None else value.decode("utf-8", "replace")
    return found if _ID.match(found) else None


def mark() -> float:
    """Make a score for the deadlines that the next sweep reads first; nearly always unique."""
    return -time.time()


def claimed(until: float) -> float:
    """Make the score for the deadlines of a session whose end is claimed until `until`, in microseconds."""
    return until / 1e6 - CLAIMS


class Script(NamedTuple):
    """One script; `sha` is the argument of EVALSHA."""

    source: str
    sha: str


def script(name: str, *, of_session: bool = True) -> Script:
    folder = files("otel_mcp.store.redis") / "lua"
    source = (folder / f"{name}.lua").read_text(encoding="utf-8")
    if of_session:
        source = f"{_CONSTANTS}\n{(folder / 'session.lua').read_text(encoding='utf-8')}\n{source}"
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


def _names(names: tuple[str, ...]) -> str:
    return "{" + ",".join(f"'{name}'" for name in names) + "}"


_CONSTANTS: Final = (
    f"local GRACE, ABANDONED = {GRACE * 1000:.0f}, {ABANDONED * 1000:.0f}\n"
    f"local LEASE, BRIEF = {LEASE * 1_000_000:.0f}, {BRIEF * 1_000_000:.0f}\n"
    f"local SKEW, LOST = {SKEW * 1_000_000:.0f}, {LOST * 1_000_000:.0f}\n"
    f"local FACTS, AT_END = {_names(('session_id', 'service', *(fact.name for fact in FACTS)))}, {_names(AT_END)}"
)
FLUSH: Final = script("flush")
SAVE: Final = script("save")
DELETE: Final = script("delete")
DESCRIBE: Final = script("describe")
BIND: Final = script("bind")
CLAIM: Final = script("claim")
ACK: Final = script("ack")
DUE: Final = script("due", of_session=False)
FORGET: Final = script("forget", of_session=False)
SWAP: Final = script("swap", of_session=False)
GET_OR_SET: Final = script("get_or_set", of_session=False)
MARK: Final = script("mark")


class Writer:
    """Turns flushes and documents into arguments of scripts, with the time of the server."""

    def __init__(self, service: str, ttl: float, cap: int, process: ProducerId) -> None:
        self._service = service
        self.owner = f"{zlib.crc32(service.encode('utf-8', 'replace')):08x}"
        """Digest of the service, in the stats of each of its sessions."""
        self.ttl = max(round(min(ttl, LONGEST) * 1000), 1)
        """Milliseconds."""
        self.cap = cap
        """Maximum number of calls that a document takes from one flush."""
        self._process = process
        self.ahead = 0.0
        """Seconds that the clock of the server is ahead of ours."""

    def learn_clock(self, server: int, *, refused: bool = False) -> None:
        """Use the clock of the server (microseconds) if ours is wrong, because replicas have to agree.

        `refused` = it refused our time: latency makes the difference look smaller here, so it may seem within `SKEW`.
        """
        offset = server / 1e6 - time.time()
        if refused or abs(offset - self.ahead) > SKEW:
            self.ahead = offset

    def instant(self, seconds: float) -> int:
        """Convert to microseconds in the time of the server."""
        return text.micros(seconds + self.ahead)

    def deadline(self, delta: SessionDelta) -> float:
        """Return the Unix seconds of the server after which the session is over."""
        last = delta.last_activity if delta.ended is None else max(delta.last_activity, delta.ended[0])
        return round(self.instant(last) / 1e6 + min(delta.facts.limit, LONGEST), 6)

    def held(self) -> float:
        """Return the score for the deadlines of a session that this process is about to end and will report later."""
        return claimed(self.instant(time.time() + LEASE))

    def flush(self, flush: Flush, joined: Joined | None = None, *, announced: bool = False) -> tuple[bytes, ...]:
        """Make arguments of ``flush.lua``; `announced`: it has already returned the end of an earlier session."""
        delta = flush.delta
        facts = text.utf8(text.facts(delta.facts, self._service))
        records = delta.calls[-self.cap :] if joined is None else joined.calls
        last = self.instant(delta.last_activity)
        began = self.instant(delta.began) if delta.began else last
        first = last if delta.first_activity is None else min(self.instant(delta.first_activity), last)
        ended = ""
        if delta.ended is not None:
            ended = f',"ended":{self.instant(delta.ended[0])},"reason":"{delta.ended[1]}"'
        counted = (
            f'{{"token":"{flush.token}","sequence":{flush.sequence},"now":{self.instant(time.time())},'
            f'"first":{first},"last":{last},"began":{began},"created":{self.instant(delta.facts.created_at)},'
            f'"requests":{delta.requests},"errors":{delta.errors},"calls":{delta.call_count},"sent":{len(records)},'
            f'"context":{delta.context},"listed":{delta.listed},"joined":{0 if joined is None else len(joined.waits)},'
            f'"limit":{text.micros(min(delta.facts.limit, LONGEST))},"start":{self.instant(self._process.started_at)},'
            f'"fingerprint":"{zlib.crc32(facts):08x}","ttl":{self.ttl},"cap":{self.cap},"service":"{self.owner}",'
            f'"user":"{delta.facts.principal or ""}","opened":{delta.facts.opened:d},'
            f'"visitor":"{delta.facts.visitor or ""}","lasting":{delta.facts.lasting:d},'
            f'"announced":{announced:d}{ended}}}'
        )
        arguments = counted.encode(), facts, text.utf8(",\n".join(map(text.call, records)))
        if joined is None:
            return arguments
        return (*arguments, text.utf8("\n".join(joined.taken)), text.utf8("\n".join(joined.absent)))

    def save(
        self, state: SessionState, limit: float, replaces: str, *, ended: bool = False, only_new: bool = False
    ) -> tuple[bytes, ...]:
        """Make arguments of ``save.lua``; `replaces` is the SHA-1 of a document of another writer that may be replaced.

        With `ended`, a session that begins with a document that has an end is over; with `only_new`, an existing
        document is not changed.
        """
        now = time.time()
        facts = SessionFacts.of(state, now if state.created_at is None else text.seconds(state.created_at), limit)
        last = now if state.last_activity is None else text.seconds(state.last_activity)
        kept = state.tool_calls[-2 * self.cap :]
        end = ""
        if ended and state.ended is not None:
            end = f',"ended":"{self.instant(text.seconds(state.ended.at))} {state.ended.reason}"'
            end += f',"outcome":"{state.outcome}"' if state.outcome in _OUTCOMES else ""
        counted = (
            f'{{"now":{self.instant(now)},"last":{self.instant(last)},"created":{self.instant(facts.created_at)},'
            f'"requests":{state.request_count},"errors":{state.error_count},"kept":{len(kept)},'
            f'"context":{state.context_bytes},"listed":{state.catalogue_bytes},'
            f'"calls":{max(state.tool_call_count, len(state.tool_calls))},"limit":{text.micros(limit)},'
            f'"ttl":{self.ttl},"service":"{self.owner}","replaces":"{replaces}","only_new":{only_new:d}{end}}}'
        )
        return (
            counted.encode(),
            text.utf8(text.facts(facts, self._service)),
            text.utf8(text.attributes(state.attributes, state.model_extra)),
            text.utf8(",\n".join(text.call(text.record(call)) for call in kept)),
        )

    def is_of(self, state: SessionState) -> bool:
        """Return whether a document belongs to this service; one that names no service belongs to any."""
        return state.service is None or state.service == self._service[: text.CLIP]


def written(flush: Flush, joined: Joined | None, reply: list[Any]) -> WriteResult:
    """Read the reply of ``flush.lua`` if it applied the flush or never will."""
    session_id, status, total = flush.delta.facts.session_id, reply[0].decode(), reply[1]
    flags = reply[2].decode("utf-8", "replace")
    if status == "bound":
        return WriteResult(session_id, owner=flags, total_calls=total)
    duplicate = status == "duplicate"
    return WriteResult(
        session_id=session_id,
        created="c" in flags,
        resumed="r" in flags,
        total_calls=total,
        duplicate=duplicate,
        ended="e" in flags,
        brief="h" in flags,
        after_end=status in ("late", "lost") or (duplicate and "l" in flags),
        refused={"foreign": "foreign", "lost": "ended"}.get(status),
        back_after=int(reply[4]) / 1e6 if len(reply) > 4 and reply[4] else None,
        waits=joined.waits if joined is not None and status in ("written", "late", "duplicate") else (),
    )
