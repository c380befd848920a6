"""The names of our keys. All keys of one session lie in one hash slot of a cluster."""

from __future__ import annotations

import re
import time

_TAG = re.compile(r"\{([^}]+)\}")

_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}\Z")


def agreed_id(value: bytes | None) -> str | None:
    """An id that replicas agreed on; ``None`` where something stands there that no replica wrote.

    It goes out in a header: who can write to Redis must not write our answers.
    """
    if value is None:
        return None
    text = value.decode("utf-8", "replace")
    return text if _ID.match(text) else None


def mark() -> float:
    """A score in the deadlines that says: look at this one next. Hardly ever the same twice."""
    return -time.time()


class Keys:
    """Names under one prefix and service.

    The key of a document has no braces of its own, so its whole name decides
    the slot, and the other keys carry that name as their hash tag. A prefix
    with a hash tag puts everything into one slot; other braces in a prefix
    would tear the keys of a session apart and are left out.
    """

    __slots__ = ("_after", "_before", "_document", "_name", "deadlines", "service", "sweeper")

    def __init__(self, prefix: str, service: str) -> None:
        tagged = _TAG.search(prefix)
        if not tagged:
            prefix = prefix.replace("{", "").replace("}", "")
        self._document = f"{prefix}mcp_session:"
        self._before, self._after = ("", "") if tagged else ("{", "}")
        self._name = service
        self.service = f"{prefix}otel_mcp:{service}:"
        self.deadlines = f"{self.service}deadlines"
        """Sorted set of sessions by the Unix seconds at which their time is over, or a claim, or a `mark`."""
        self.sweeper = f"{self.service}sweeper"
        """Who looks for ends at present."""

    def session(self, session_id: str) -> tuple[str, str]:
        """The document of a session and its stats."""
        document = self._document + _name(session_id)
        return document, f"{self._before}{document}{self._after}:stats"

    def successor(self, session_id: str) -> str:
        """The id of the session that continues this one, for this service."""
        return f"{self._before}{self._document}{_name(session_id)}{self._after}:next:{self._name}"

    def agreement(self, key: str) -> str:
        """A value that all replicas of the service share."""
        return self.service + key


def _name(session_id: str) -> str:
    """The id as it stands in keys: ids of ours have no braces, those of the user's API may."""
    if "{" in session_id or "}" in session_id:
        return session_id.replace("{", "%7B").replace("}", "%7D")
    return session_id
