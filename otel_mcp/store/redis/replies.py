"""Reads the replies of a session's scripts, except those to flushes. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from otel_mcp.model.delta import FACTS, EndedSession, Known, SessionFacts
from otel_mcp.model.state import ToolCall
from otel_mcp.store.redis.codec import AT_END, agreed_id, text_of

_CALLS: Final = TypeAdapter(list[ToolCall])


def ended_session(session_id: str, report: list[Any]) -> EndedSession:
    """Read the report of an end, as ``session.lua`` collects it."""
    end, created, limit, last, calls, errors, requests, context, visitor, findings, *labels, newest = report
    reason = end.split(b" ")[1].decode()
    facts = facts_of(session_id, created, limit, labels)
    facts.visitor = text_of(visitor)
    return EndedSession(
        facts,
        # An operator asked for it.
        "server_closed" if reason == "deleted" else reason,
        int(last) / 1e6,
        int(calls),
        int(errors),
        int(requests),
        int(context or 0),
        _calls(newest),
        (text_of(findings) or "").split(),
    )


def facts_of(session_id: str, created: bytes, limit: bytes, labels: Sequence[bytes | None]) -> SessionFacts:
    """Read the facts of `AT_END`, which come last in a reply."""
    facts = SessionFacts(session_id, int(created) / 1e6, int(limit) / 1e6)
    for name, label in zip(AT_END, labels, strict=True):
        setattr(facts, name, text_of(label))
    return facts


def _calls(lines: bytes) -> list[ToolCall]:
    """Read the calls of a document, in the order in which they began; empty if another writer made them unreadable."""
    try:
        found = _CALLS.validate_json(b"[%b]" % lines)
        return sorted(found, key=lambda call: call.started_at)
    except (ValidationError, TypeError):  # TypeError: times with and without a zone.
        return []


def known(session_id: str, reply: list[Any]) -> Known:
    """Read the reply of ``describe.lua``."""
    exists, ended, successor, bound, opened, name, version, *about = reply
    user = text_of(bound)
    answer = Known(False, bool(ended), agreed_id(successor), principal=user, opened=opened is not None)
    client = {"client_name": text_of(name), "client_version": text_of(version)}
    answer.client = {fact: value for fact, value in client.items() if value}
    if not exists:
        return answer
    text_of_facts, created, limit, calls, visitor, lasting, may_go_on = about
    try:
        found = from_json(text_of_facts)
    except ValueError:
        return Known(exists=False, successor=answer.successor)
    answer.facts = SessionFacts(session_id, int(created) / 1e6, int(limit) / 1e6, principal=user)
    answer.facts.visitor, answer.facts.lasting = text_of(visitor), bool(lasting)
    for fact in FACTS:
        if isinstance(value := found.get(fact.name, answer.client.get(fact.name)), str):
            setattr(answer.facts, fact.name, value)
    answer.exists, answer.has_tool_calls, answer.may_go_on = True, calls > 0, bool(may_go_on)
    return answer
