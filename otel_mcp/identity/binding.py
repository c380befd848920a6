"""A session that a user has been seen in is that user's: under another one the same id is another session.

Only users bind, by the keyed hash of their names. A bare token does not: it
may be a rotated one. No I/O.
"""

from __future__ import annotations

from otel_mcp.identity.keys import Keys
from otel_mcp.identity.principal import Principal
from otel_mcp.sessions.delta import SessionFacts


def is_foreign(facts: SessionFacts, principal: Principal | None) -> bool:
    """Whether the session is bound to somebody else."""
    if facts.principal is None:
        return False
    return principal is None or not principal.binds or facts.principal != principal.digest


def bind(facts: SessionFacts, principal: Principal | None) -> bool:
    """Bind an unbound session; returns whether that has just happened."""
    if facts.principal is not None or principal is None or not principal.binds:
        return False
    facts.principal = principal.digest
    return True


def id_for(keys: Keys, session_id: str, principal: Principal | None) -> str:
    """The id of the session that `principal` has instead of somebody else's."""
    return f"p_{keys.digest('bound', session_id, principal.digest if principal else '')}"
