"""What must be true of the telemetry and of Redis after the clients have done their work.

The tally of the clients is the only thing here that was not read back.
"""

from __future__ import annotations

from itertools import chain

from .checks_calls import counts, nesting, patience, spans
from .checks_sessions import discretion, lifecycle, sessions
from .evidence import Check, Evidence

_GROUPS = (counts, spans, patience, nesting, sessions, lifecycle, discretion)


def judge(evidence: Evidence) -> list[Check]:
    """Carry out every check."""
    return list(chain.from_iterable(group(evidence) for group in _GROUPS))
