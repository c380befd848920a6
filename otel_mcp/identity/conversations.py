"""Conversations that go over many transport sessions, and what becomes of those.

ChatGPT opens a transport session for every call. An operator wants to see one
session: the conversation. A transport session that has done nothing but shake
hands when a call names a conversation is therefore part of that conversation:
it is never begun, or, if the store knows it already, it ends as ``replaced``.
One in which tools were called before is a session in its own right, and stays.
"""

from __future__ import annotations

from functools import partial

from otel_mcp.identity.principal import is_foreign
from otel_mcp.identity.reconcile import Later
from otel_mcp.identity.registry import Registry
from otel_mcp.model.delta import SessionDelta, SessionFacts
from otel_mcp.model.session import Claim, Session
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings


class Conversations:
    """Makes transport sessions part of conversations."""

    def __init__(self, settings: Settings, registry: Registry, sessions: Sessions, later: Later) -> None:
        self._registry = registry
        self._sessions = sessions
        self._later = later
        # By then another replica has given up keeping it back, and has written it.
        self._written = sessions.buffer.hold_time + 2 * settings.flush_interval

    def absorb(self, transport_id: str, conversation: Session, claim: Claim, *, owned: bool) -> None:
        """Have `conversation`, which a call has named by `claim`, take in the transport session that it came on."""
        transport = self._registry.get(transport_id)
        if transport is conversation:
            return
        if transport is None:
            if not owned:
                self._later.run(partial(self._look, transport_id, conversation, claim, again=True))
        elif transport.conversation is not None:
            transport.conversation = conversation  # The one that it spoke for last.
        elif not transport.tool_calls and not is_foreign(transport.facts, claim.principal):
            transport.conversation = conversation
            if not self._sessions.buffer.hand_over(transport_id, conversation.facts):
                self._replace(transport.facts, conversation)
            if not owned:
                # Any replica may be asked about it next.
                self._later.run(partial(self._agree, transport_id, conversation))

    def _replace(self, facts: SessionFacts, conversation: Session) -> None:
        if conversation.facts.previous_id is None and not conversation.facts.lasting:
            conversation.facts.previous_id = facts.session_id
        now = self._registry.clock()
        self._sessions.submit(SessionDelta(facts, now, ended=(now, "replaced")))

    async def _look(self, transport_id: str, conversation: Session, claim: Claim, *, again: bool) -> None:
        """Replace the session that another replica has written, or is about to write, after a handshake."""
        known = await self._sessions.describe(transport_id)
        if known is None or known.ended or known.has_tool_calls:
            return
        if known.live is None:
            if again:
                look = partial(self._look, transport_id, conversation, claim, again=False)
                self._later.run(look, self._written)
        elif not is_foreign(known.live, claim.principal) and not conversation.ended:
            self._replace(known.live, conversation)
            await self._agree(transport_id, conversation)

    async def _agree(self, transport_id: str, conversation: Session) -> None:
        user = conversation.facts.principal
        successor = await self._sessions.get_or_set_successor(transport_id, conversation.id, user)
        if self._registry.get(transport_id) is None:
            self._registry.follow(transport_id, successor)
