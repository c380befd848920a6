"""Bound the names on the measurements of calls, and find their series."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from otel_mcp import semconv
from otel_mcp.bounded import BoundedNames
from otel_mcp.model.call import Call, client_of
from otel_mcp.telemetry.catalogue import taken_by
from otel_mcp.telemetry.census import Census
from otel_mcp.telemetry.instruments import Instruments
from otel_mcp.telemetry.series import Series
from otel_mcp.telemetry.session_metrics import MAX_SERIES, PROTOCOL_VERSIONS
from otel_mcp.wire.jsonrpc import CALLER_CODES, FINE, KNOWN_METHODS, Outcome

MAX_CLIENTS: Final = 20
MAX_TENANTS: Final = 50
MAX_ERRORS: Final = 50
"""Maximum number of error types, and of codes, with own label values: a server may make them of a client's input."""
_USUAL_CODES: Final = ("-32700", "-32600", "-32601", "-32602", "-32603", "-32002", "-32001", "-32000")
_USUAL_ERRORS: Final = (
    *(semconv.TOOL_ERROR, "cancelled", "disconnected", "400", "401", "403", "404", "500"),
    *(code for code in _USUAL_CODES if code not in CALLER_CODES),
)
"""These always have a label value of their own."""
_MAX_SERIES: Final = 2000
"""Maximum number of cached series; the SDK has as many per instrument."""

Sizes = dict[str | None, Series]
"""Sizes of results of one tool, by tenant."""
Found = tuple[str | None, str, str | None, Series | None, Series, Sizes]
"""Tool or prompt, client (empty = none) and tenant; and the series of client, duration and sizes."""


class Labels:
    """Provides label values, of which neither a stranger nor a server can create many."""

    def __init__(
        self, on: Instruments, names: Mapping[str, BoundedNames], census: Census, tenants: Iterable[str]
    ) -> None:
        """Initialize with few label values.

        Args:
            on: the instruments.
            names: of tools and prompts, by the method that calls them.
            census: gets the methods and tools that have been served.
            tenants: always have label values of their own, in any order of requests.
        """
        self._on = on
        self._names = names
        self._served = census.served
        self.clients = BoundedNames(MAX_CLIENTS)
        self.tenants = BoundedNames(MAX_TENANTS, tenants)
        self._error_types = BoundedNames(MAX_ERRORS, _USUAL_ERRORS)
        self._error_codes = BoundedNames(MAX_ERRORS, _USUAL_CODES)
        self.usual: dict[tuple[str | None, ...], Found] = {}
        """Results for calls that worked: by unbounded tool, client, tenant, and versions of MCP and HTTP."""
        self.taken: dict[str, int] = {}
        """Bytes of an answer that clients accept whole, by their names, if known."""
        self._series: dict[tuple[str | None, ...], tuple[Series, Sizes]] = {}
        """Duration, and sizes of results by tenant, by the values of their attributes."""
        self._sizes: dict[str | None, Sizes] = {}  # Of results, by tool and tenant.
        self._client_series: dict[tuple[str | None, ...], Series] = {}

    def slow_find(self, call: Call, key: tuple[str | None, ...]) -> Found:
        """Bound the names on the measurements of a call, and find its series; cache them if they are final."""
        outcome, exchange, of = call.outcome, call.exchange, call.tenant
        worked = has_worked(outcome)
        method = call.method if call.method in KNOWN_METHODS else semconv.OTHER
        asked = exchange.protocol_version
        version = asked if asked in PROTOCOL_VERSIONS else semconv.OTHER if asked else None
        accepted = call.accepted or (exchange.status or 500) < 300
        # Clients that only sent `initialize`, as anybody can, leave room for those that work.
        proven = accepted and worked and method == "tools/call"
        label, requests = "", None
        tenant = self.tenants.bounded(of, proven=proven, likely=accepted) if of is not None else None
        if call.id is not None and ((client := client_of(call)[0]) is not None or tenant is not None):
            label = self.clients.bounded(client, proven=proven, likely=accepted) if client is not None else ""
            by = label or None, method, version, tenant  # Clients without a name count for their tenant.
            requests = self._client_series.get(by) or self._make_client_series(*by)
        name: str | None = None
        if (names := self._names.get(method)) is not None:
            named = call.target is not None
            name = names.bounded(call.target or "", proven=call.trusted_name and named, likely=worked and named)
        error_type, code = (None, None) if worked or outcome is None else self._errors(outcome, call)
        by = (method, name, error_type, code, version, exchange.http_version)
        duration, sizes = self._series.get(by) or self._make_series(by)
        found = name, label, tenant, requests, duration, sizes
        # Names with own label values keep them.
        if proven and call.trusted_name and call.id is not None and key == (name, label, tenant, version, key[-1]):
            if len(self.usual) >= _MAX_SERIES:
                self.usual.clear()
            self.usual[key] = found
        return found

    def slow_size(self, sizes: Sizes, tool: str | None, tenant: str | None) -> Series:
        if tenant is not None and sum(map(len, self._sizes.values())) >= MAX_SERIES:
            tool = semconv.OTHER
        by = {semconv.GEN_AI_TOOL_NAME: tool} | ({semconv.TENANT: tenant} if tenant is not None else {})
        made = sizes[tenant] = Series(self._on.result_size, by)
        return made

    def _errors(self, outcome: Outcome, call: Call) -> tuple[str | None, str | None]:
        """Return the error type and the JSON-RPC code of a failure, bounded."""
        error_type, code = outcome.error_type, outcome.status_code
        if error_type is not None:
            error_type = self._error_types.bounded(error_type, proven=call.accepted, likely=True)
        if code is not None:
            code = self._error_codes.bounded(code, proven=call.accepted, likely=True)
        return error_type, code

    def _make_client_series(self, client: str | None, method: str, version: str | None, tenant: str | None) -> Series:
        if client is not None and (taken := taken_by(client)) is not None:
            self.taken[client] = taken
        if len(self._client_series) >= MAX_SERIES:
            client, method, version = semconv.OTHER, semconv.OTHER, None
            if (other := self._client_series.get((client, method, version, tenant))) is not None:
                return other
        by = {
            semconv.CLIENT_NAME: client,
            semconv.MCP_METHOD_NAME: method,
            semconv.MCP_PROTOCOL_VERSION: version,
            semconv.TENANT: tenant,
        }
        made = Series(self._on.clients_requests, {name: value for name, value in by.items() if value is not None})
        self._client_series[client, method, version, tenant] = made
        return made

    def _make_series(self, key: tuple[str | None, ...]) -> tuple[Series, Sizes]:
        """Make the series for the durations of calls with these bounded values, and find those for their sizes."""
        method, name, error_type, code, version, http_version = key
        is_tool = method == "tools/call"
        attributes = {
            semconv.MCP_METHOD_NAME: method,
            semconv.NETWORK_PROTOCOL_VERSION: http_version,
            semconv.MCP_PROTOCOL_VERSION: version,
            semconv.ERROR_TYPE: error_type,
            semconv.RPC_RESPONSE_STATUS_CODE: code,
            semconv.GEN_AI_OPERATION_NAME: semconv.EXECUTE_TOOL if is_tool else None,
            semconv.GEN_AI_TOOL_NAME if is_tool else semconv.GEN_AI_PROMPT_NAME: name,
        }
        duration = Series(self._on.duration, {name: value for name, value in attributes.items() if value is not None})
        if len(self._series) >= _MAX_SERIES:
            self._series.clear()
        made = self._series[key] = duration, self._sizes.setdefault(name, {})
        self._served.add((method or "", name if is_tool else None))
        return made


def has_worked(outcome: Outcome | None) -> bool:
    """Return whether a call is known to have done what it was asked for."""
    return outcome is FINE or (outcome is not None and not outcome.failed and not outcome.unclassified)
