"""A session is that of the user who began it: under another one the same id is another session.

By ``initialize``, or, where there was none, by its first message; who comes
later binds nothing. Only users bind, by the keyed hash of their names. A bare
token does not: it may be a rotated one. No I/O.
"""

from __future__ import annotations

from otel_mcp.hashing import Keys
from otel_mcp.identity.principal import Principal
from otel_mcp.model.delta import Known, SessionFacts
from otel_mcp.model.session import Session


def is_foreign(facts: SessionFacts, principal: Principal | None) -> bool:
    """Whether the session is bound to somebody else."""
    return facts.principal is not None and facts.principal != user_of(principal)


def is_of_another(known: Known | None, principal: Principal | None) -> bool:
    """Whether the store has an id as that of another user's session, which may have ended."""
    return known is not None and known.principal not in (None, user_of(principal))


def user_of(principal: Principal | None) -> str | None:
    """The user that a caller is, as what sessions are bound by; ``None`` = nobody in particular."""
    return principal.digest if principal is not None and principal.binds else None


def bind(session: Session, principal: Principal | None) -> None:
    """Bind a session that begins."""
    session.caller = principal.digest if principal is not None else ""
    session.facts.principal = user_of(principal)


def id_for(keys: Keys, session_id: str, principal: Principal | None) -> str:
    """The id of the session that `principal` has instead of somebody else's."""
    return own_id(keys, session_id, principal.digest if principal else "")


def own_id(keys: Keys, session_id: str, caller: str) -> str:
    """The same, by the digest of the caller."""
    return f"p_{keys.digest('bound', session_id, caller)}"
