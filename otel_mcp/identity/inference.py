"""Sessions of clients that name none: the same fingerprint within the idle gap, agreed by all replicas."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from otel_mcp.hashing import new_id
from otel_mcp.identity.directory import Directory
from otel_mcp.identity.principal import bind
from otel_mcp.identity.registry import Table
from otel_mcp.model.session import Claim, Session
from otel_mcp.types import Asker


class Inference:
    """Which session a fingerprint stands for."""

    def __init__(self, table: Table, directory: Directory, gap: float, rejected: Callable[[str], None]) -> None:
        """Begin with nothing known; `gap` is the silence in seconds after which a session is over."""
        self._table = table
        self._directory = directory
        self._gap = gap
        self._rejected = rejected
        self._fingerprints: OrderedDict[str, str] = OrderedDict()

    def peek(self, claim: Claim) -> Session | None:
        """The session, if it is known without asking."""
        known = self._fingerprints.get(claim.key)
        session = self._table.get(known) if known else None
        # One that came back by its id is none that replicas have agreed on, as far as is known here.
        return session if session is not None and session.agreement is not None else None

    async def propose(self, claim: Claim, asker: Asker | None = None) -> Session | None:
        """The session that `resolve` would give; agrees on nothing."""
        agreed = await self._directory.get(_agreement(claim), asker)
        if agreed is None and not self._table.may_open():
            return None
        session = self._table.draft(agreed or new_id(), claim.source, limit=self._gap)
        session.agreement = _agreement(claim) if agreed is not None else None
        return session

    async def resolve(self, claim: Claim, proposed: Session | None, asker: Asker | None = None) -> Session | None:
        """The session that all replicas agree on; ``None`` beyond the limit on new ones."""
        agreement = _agreement(claim)
        if not self._table.may_open():
            # Another replica's session may still be joined: that opens none.
            agreed = await self._directory.get(agreement, asker)
            if agreed is None:
                self._rejected("limit")
                return None
            session_id, joined = agreed, True
        else:
            candidate = proposed.id if proposed is not None else new_id()
            with self._table.room():
                answer = await self._directory.get_or_set(agreement, candidate, self._gap, asker)
            joined = answer != candidate or (proposed is not None and proposed.agreement is not None)
            session_id = self._table.first(self._fingerprints, claim.key, answer, candidate)
        self._table.remember(self._fingerprints, claim.key, session_id)
        session = self._table.get(session_id)
        if session is None:
            if joined:
                session = self._table.draft(session_id, claim.source, limit=self._gap)
                self._table.put(session)
            else:
                session = self._table.admit(session_id, claim.source, limit=self._gap)
            if session is not None:
                bind(session, claim.principal)
        if session is not None:
            session.agreement = agreement
        return session


def _agreement(claim: Claim) -> str:
    return f"client:{claim.key}"
