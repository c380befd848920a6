"""Record metrics of sessions: starts, ends, interruptions, findings."""

from __future__ import annotations

from typing import Any, Final, Protocol

from otel_mcp import semconv
from otel_mcp.bounded import BoundedNames
from otel_mcp.model.call import MODERN
from otel_mcp.model.delta import EndedSession, SessionFacts
from otel_mcp.model.session import CAUSES, WITHIN, Interruption, within
from otel_mcp.model.verdict import PATTERNS
from otel_mcp.telemetry.instruments import Instruments
from otel_mcp.telemetry.spans import NO_SPAN

_LEGACY_VERSIONS: Final = ("2025-03-26", "2025-06-18", "2025-11-25")
PROTOCOL_VERSIONS: Final = frozenset({"2024-11-05", *_LEGACY_VERSIONS, MODERN})
_USUAL_STARTS: Final = {
    "header": _LEGACY_VERSIONS,
    "conversation": (MODERN,),
    "inferred": (MODERN,),
    "inferred_weak": (MODERN,),
}
"""Session sources, with the protocol versions of their clients."""
MAX_SERIES: Final = 1800
"""Series of one instrument up to which all attributes are kept; the SDK merges series beyond 2,000."""


class ByClient(Protocol):
    """Adds the bounded name of a client to attributes; see `BoundedNames.bounded`."""

    def __call__(
        self, client: str | None, attributes: dict[str, Any], *, proven: bool = False, likely: bool = False
    ) -> dict[str, Any]: ...


class _BoundedSeries:
    """The series of one counter: at most `MAX_SERIES`, and one more for each tenant."""

    def __init__(self) -> None:
        self._known: set[frozenset[tuple[str, Any]]] = set()

    def fit(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Return the attributes; if there is no room for a new series, all but the tenant become ``_OTHER``."""
        series = frozenset(attributes.items())
        if series not in self._known:
            if len(self._known) >= MAX_SERIES:
                return {name: value if name == semconv.TENANT else semconv.OTHER for name, value in attributes.items()}
            self._known.add(series)
        return attributes


class SessionMetrics:
    """Measurements of sessions."""

    def __init__(self, on: Instruments, of_client: ByClient, tenants: BoundedNames) -> None:
        self._on = on
        self._of_client = of_client
        self._tenants = tenants
        self._starts = _BoundedSeries()
        self._ends = _BoundedSeries()
        self._clients: set[str] = set()
        """Clients that have begun a session."""

    def register(self) -> None:
        """Record zeros for the usual series, so that rates include the first increase of each.

        Of any other series, rates begin with its second increase.
        """
        for source, versions in _USUAL_STARTS.items():
            for version in versions:
                self._on.started.add(0, self._starts.fit(_attributes(source, version)), NO_SPAN)
        self._on.resumed.add(0, None, NO_SPAN)
        for reason in ("limit", "principal"):
            self._on.rejected.add(0, {semconv.REJECT_REASON: reason}, NO_SPAN)
        for pattern in PATTERNS:
            self._on.findings.add(0, {semconv.SESSION_FINDING: pattern}, NO_SPAN)
        self._expect_ends({})
        for cause in CAUSES:
            self._on.interrupted.add(0, {semconv.SESSION_INTERRUPTED_CAUSE: cause}, NO_SPAN)
        for name, _ in WITHIN:
            self._on.returned.add(0, {semconv.SESSION_RETURNED_WITHIN: name}, NO_SPAN)

    def _expect_ends(self, of_client: dict[str, Any]) -> None:
        for reason in ("client_delete", "expired", "server_closed", "replaced"):
            for outcome in ("worked", "no_call"):
                how = {semconv.SESSION_END_REASON: reason, semconv.SESSION_OUTCOME: outcome}
                self._on.ended.add(0, self._ends.fit(how | of_client), NO_SPAN)

    def started(self, facts: SessionFacts) -> None:
        how = _attributes(facts.source, facts.protocol_version) | self._of_tenant(facts.tenant)
        self._on.started.add(1, self._starts.fit(how), NO_SPAN)
        client = self._of_client(facts.client_name, {})
        name = client.get(semconv.CLIENT_NAME)
        if name is not None and name not in self._clients:
            self._clients.add(name)
            self._expect_ends(client)

    def _of_tenant(self, tenant: str | None, *, proven: bool = False) -> dict[str, Any]:
        if tenant is None:
            return {}
        return {semconv.TENANT: self._tenants.bounded(tenant, proven=proven, likely=True)}

    def resumed(self) -> None:
        self._on.resumed.add(1, None, NO_SPAN)

    def ended(self, ended: EndedSession) -> None:
        """Count the end of a session, and record its size; also its duration unless its limits are guessed."""
        facts = ended.facts
        how = {semconv.SESSION_END_REASON: ended.reason, semconv.SESSION_OUTCOME: ended.outcome or semconv.OTHER}
        of = self._of_client(facts.client_name, how) | self._of_tenant(facts.tenant, proven=ended.tool_call_count > 0)
        self._on.ended.add(1, self._ends.fit(of), NO_SPAN)
        attributes = _attributes(facts.source, facts.protocol_version)
        self._on.tool_calls.record(ended.tool_call_count, {semconv.SESSION_SOURCE: facts.source or "none"}, NO_SPAN)
        if ended.context_bytes:
            self._on.context_size.record(ended.context_bytes, self._of_client(facts.client_name, {}), NO_SPAN)
        if facts.source != "inferred_weak":
            attributes[semconv.SESSION_END_REASON] = ended.reason
            self._on.session_duration.record(max(0.0, ended.last_activity - facts.created_at), attributes, NO_SPAN)

    def interrupted(self, cut: Interruption) -> None:
        """Count an interruption: a server refused a live session."""
        # A new process has not seen this client succeed, but the store has.
        how = {semconv.SESSION_INTERRUPTED_CAUSE: cut.cause}
        of = self._of_client(cut.facts.client_name, how, proven=cut.has_tool_calls, likely=True)
        self._on.interrupted.add(1, of, NO_SPAN)

    def returned(self, facts: SessionFacts, after: float) -> None:
        """Count a client that came back `after` seconds."""
        how = {semconv.SESSION_RETURNED_WITHIN: within(after)}
        self._on.returned.add(1, self._of_client(facts.client_name, how, likely=True), NO_SPAN)

    def found(self, finding: str, client: str | None) -> None:
        self._on.findings.add(1, self._of_client(client, {semconv.SESSION_FINDING: finding}), NO_SPAN)

    def rejected(self, reason: str) -> None:
        self._on.rejected.add(1, {semconv.REJECT_REASON: reason}, NO_SPAN)


def _attributes(source: str | None, protocol_version: str | None) -> dict[str, str]:
    attributes = {semconv.SESSION_SOURCE: source or "none"}
    if protocol_version:
        known = protocol_version in PROTOCOL_VERSIONS
        attributes[semconv.MCP_PROTOCOL_VERSION] = protocol_version if known else semconv.OTHER
    return attributes
