"""How a session went, from its tool calls: the digests of their arguments, sizes, failures and times, never content.

A model that sees the same thing four times and asks again is stuck; a timer that asks every half minute is not. The
rules and where their thresholds come from: docs/sessions.md. All of it is pure, and the order of arrival is of no
account: calls are sorted by all that is known of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal, NamedTuple, get_args

from otel_mcp.model.delta import CallRecord
from otel_mcp.model.outcomes import LEFT
from otel_mcp.model.state import ToolCall

Pattern = Literal["looped", "retry_storm", "ping_pong"]
SessionOutcome = Literal["worked", "corrected", "looped", "retry_storm", "ping_pong", "gave_up", "no_call", "probe"]

PATTERNS: Final[tuple[Pattern, ...]] = get_args(Pattern)

_LOOP: Final = 4
_PING_PONG: Final = 6
_SAME_RETRIES: Final = 3
_ANY_RETRIES: Final = 5
_QUICK: Final = 60.0
"""Seconds of pauses that so many retries take at most; and after a longer pause nothing is a repetition."""
_TIMER: Final = 8.5
"""Seconds; where no pause is shorter, and three quarters are at most `_EVEN` times the shortest, a timer waits."""
_EVEN: Final = 1.5
_VERY_EVEN: Final = 1.1
"""The same factor where the shortest quarter of the pauses is left out: a call outside the timer's turn."""

_VISITS: Final = 5
_ONE_VISIT: Final = 5.0
"""Seconds within which a monitor that opens two sessions makes one visit."""
_SHORTEST_GAP: Final = 20.0
_LONGEST_GAP: Final = 900.0
_JITTER: Final = 1.3


class Finding(NamedTuple):
    """A pattern that the calls of a session show."""

    name: Pattern
    tool_name: str
    """Of two that alternate, the first."""
    calls: int
    """How long it is; calls in parallel are one."""


class _Seen(NamedTuple):
    """A call, as far as it counts here; sorts by time, then by all the rest."""

    start: float
    end: float
    """Unix seconds, both."""
    tool: str
    digest: str
    """Empty = without arguments, or too large for one."""
    size: int
    """Bytes of the answer without its id, which grows by itself; -1 = not seen."""
    state: Literal["failed", "left", "worked"]


@dataclass(slots=True)
class _Step:
    """Calls that began before the first of them had ended: one turn of a model, which knew none of the answers."""

    first_end: float
    calls: list[_Seen] = field(default_factory=list[_Seen])

    @property
    def start(self) -> float:
        return self.calls[0].start

    def sign(self) -> frozenset[object] | None:
        """Return what a repetition of it is equal in; ``None`` = too little is known."""
        if any(not call.digest and call.size < 0 for call in self.calls):
            return None
        return frozenset(call[2:] for call in self.calls)


def judge(
    calls: Sequence[CallRecord | ToolCall], total: int, *, findings: Iterable[str] = (), probe: bool = False
) -> SessionOutcome:
    """Tell how a session went.

    Args:
        calls: those that are still known, of all replicas, in any order.
        total: how many there were.
        findings: what `find` has found while the session lived; its older calls are forgotten since.
        probe: a registry or a monitor, by its name or by its visits.
    """
    if probe:
        return "probe"
    if not total and not calls:
        return "no_call"
    seen = _sorted(calls)
    if found := _patterns(seen):
        return found[0].name
    found_before = frozenset(findings)
    for pattern in PATTERNS:
        if pattern in found_before:
            return pattern
    tried = [call for call in seen if call.state != "left"]
    if not tried:
        return "gave_up" if seen else "worked"
    if all(call.state == "failed" for call in _steps(tried)[-1].calls):
        return "gave_up"
    return "corrected" if _corrected(tried) else "worked"


def find(calls: Sequence[CallRecord | ToolCall]) -> tuple[Finding, ...]:
    """Find the patterns that a session has shown so far, the longest first; calls come in any order."""
    return tuple(_patterns(_sorted(calls)))


def visits_regularly(starts: Iterable[float]) -> bool:
    """Tell a monitor from a person by when it came, listed and called nothing.

    The newest five visits count, 20 seconds to 15 minutes apart, the longest gap at most 1.3 times the shortest,
    as a timer's jitter leaves it. Shorter gaps are those of a client that reconnects in vain, which must not be hidden;
    longer ones nobody can tell from a person's.

    Args:
        starts: Unix seconds, in any order.
    """
    visits: list[float] = []
    for start in sorted(starts):
        if not visits or start - visits[-1] > _ONE_VISIT:
            visits.append(start)
    gaps = [later - earlier for earlier, later in pairwise(visits[-_VISITS:])]
    if len(gaps) < _VISITS - 1:
        return False
    shortest, longest = min(gaps), max(gaps)
    return shortest >= _SHORTEST_GAP and longest <= min(_LONGEST_GAP, _JITTER * shortest)


def went(call: CallRecord | ToolCall) -> Literal["failed", "left", "worked"]:
    """Tell how a call went; ``left`` = the client did not wait for it, or has not brought what it asked for."""
    if call.failure == "cancelled" or call.error_type in LEFT or call.waiting is not None:
        return "left"
    return "worked" if call.failure is None and call.error_type is None else "failed"


def _sorted(calls: Iterable[CallRecord | ToolCall]) -> list[_Seen]:
    return sorted(map(_seen, calls))


def _seen(call: CallRecord | ToolCall) -> _Seen:
    started = call.started_at if isinstance(call.started_at, int | float) else call.started_at.timestamp()
    size = -1 if call.result_bytes is None else call.result_bytes - len(str(call.request_id))
    ended = started + call.duration + call.input_wait
    return _Seen(started, ended, call.tool_name, call.arguments_digest or "", size, went(call))


def _steps(calls: list[_Seen]) -> list[_Step]:
    steps: list[_Step] = []
    for call in calls:
        if not steps or (call.start >= steps[-1].first_end and call.start > steps[-1].start):
            steps.append(_Step(call.end))
        steps[-1].calls.append(call)
        steps[-1].first_end = min(steps[-1].first_end, call.end)
    return steps


def _patterns(seen: list[_Seen]) -> list[Finding]:
    """Find each pattern once, in its longest run; equally long ones in the order of `PATTERNS`."""
    tried = [call for call in seen if call.state != "left"]
    steps = _steps(tried)
    found = (_repetition(steps, "looped", 1), _retries(tried), _repetition(steps, "ping_pong", 2))
    return sorted(filter(None, found), key=lambda finding: -finding.calls)


def _repetition(steps: list[_Step], name: Pattern, period: int) -> Finding | None:
    """Find the longest run in which each step equals the one `period` steps before."""
    signs = [step.sign() for step in steps]
    best: Finding | None = None
    first = 0
    while first < len(steps):
        end = first
        while end < len(steps) and _continues(steps, signs, first, end, period):
            end += 1
        run = steps[first:end]
        if (best is None or len(run) > best.calls) and _is_stuck(run, period):
            best = Finding(name, run[0].calls[0].tool, len(run))
        first = max(first + 1, end - period + 1)  # The last of one alternation may be the first of another.
    return best


def _continues(steps: list[_Step], signs: list[frozenset[object] | None], first: int, at: int, period: int) -> bool:
    if signs[at] is None or (period == 1 and any(call.state != "worked" for call in steps[at].calls)):
        return False
    if at == first:
        return True
    if steps[at].start - steps[at - 1].first_end > _QUICK:
        return False
    return signs[at] != signs[at - 1] if at - first < period else signs[at] == signs[at - period]


def _is_stuck(run: list[_Step], period: int) -> bool:
    """Return whether a run is long enough, and nothing that a timer makes."""
    if len(run) < (_PING_PONG if period > 1 else _LOOP):
        return False
    pauses = sorted(later.start - earlier.first_end for earlier, later in pairwise(run))
    lower, upper = pauses[(len(pauses) + 1) // 4], pauses[len(pauses) * 3 // 4]
    even = upper <= _EVEN * pauses[0] if pauses[0] >= _TIMER else upper <= _VERY_EVEN * lower
    return lower < _TIMER or not even


def _retries(calls: list[_Seen]) -> Finding | None:
    """Find the longest run of failures of one tool, each begun when the one before had ended."""
    best: Finding | None = None
    runs: dict[tuple[str, ...], list[_Seen]] = {}
    for call in calls:
        for key, least in (((call.tool,), _ANY_RETRIES), ((call.tool, call.digest), _SAME_RETRIES)):
            run = runs.setdefault(key, [])
            if call.state == "worked":
                run.clear()
                continue
            if run and (call.start < run[-1].end or call.start == run[-1].start):
                continue  # In parallel: nobody had seen the other fail.
            if run and (call.start - run[-1].end > _QUICK or not _may_be_equal(key, call, run[-1])):
                run.clear()
            run.append(call)
            last = run[-least:]
            pauses = sum(later.start - earlier.end for earlier, later in pairwise(last))
            if len(run) >= least and pauses <= _QUICK and (best is None or len(run) > best.calls):
                best = Finding("retry_storm", call.tool, len(run))
    return best


def _may_be_equal(key: tuple[str, ...], call: _Seen, former: _Seen) -> bool:
    """Return whether two failures count as equal; without a digest, only if the answers were equally long."""
    return len(key) == 1 or bool(call.digest) or call.size == former.size >= 0


def _corrected(calls: list[_Seen]) -> bool:
    """Return whether a tool worked after it had failed."""
    failed: dict[str, float] = {}
    for call in calls:
        if call.state == "failed":
            failed.setdefault(call.tool, call.end)
        elif call.start >= failed.get(call.tool, float("inf")):
            return True
    return False
