"""Every attribute, metric, event and scope name that this package emits.

The MCP names come from the OpenTelemetry semantic conventions for MCP. They are
spelt out here because their constants in ``opentelemetry-semantic-conventions`` are
deprecated (the conventions moved to the GenAI repository). Our own names start with
``otel_mcp.``.
"""

from __future__ import annotations

from typing import Final

SCOPE: Final = "otel_mcp"
"""Instrumentation scope of every span, metric and event."""
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""Schema of the conventions that the attribute names come from."""

# Attributes of the conventions.
MCP_METHOD_NAME: Final = "mcp.method.name"
"""Method of the message; on metrics ``_OTHER`` for methods that are not in the protocol."""
MCP_PROTOCOL_VERSION: Final = "mcp.protocol.version"
"""Negotiated protocol revision; on metrics ``_OTHER`` for revisions that do not exist."""
MCP_RESOURCE_URI: Final = "mcp.resource.uri"
"""URI of the requested resource, without user, password, query and fragment, at most 256 characters. FastMCP's own
spans of ``resources/read`` have the whole URI."""
MCP_SESSION_ID: Final = "mcp.session.id"
"""Id of the transport session, from an ``Mcp-Session-Id`` header only."""
SESSION_ID: Final = "session.id"
"""Id of the session, as in Redis, events and dashboards."""
SESSION_PREVIOUS_ID: Final = "session.previous_id"
"""Id of the session that this one continues, as the successor of an unknown or expired id."""
GEN_AI_CONVERSATION_ID: Final = "gen_ai.conversation.id"
"""Id of the conversation, if the host sent one."""
GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
"""``execute_tool`` on tool calls."""
GEN_AI_TOOL_NAME: Final = "gen_ai.tool.name"
"""Name of the tool; on metrics ``_OTHER`` unless a call of it worked or the server listed it."""
GEN_AI_PROMPT_NAME: Final = "gen_ai.prompt.name"
"""Name of the prompt; on metrics ``_OTHER`` unless the server returned or listed it."""
GEN_AI_TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
"""Arguments as JSON, after the redaction hook; only if content is captured."""
GEN_AI_TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"
"""Result as JSON, after the redaction hook; only if content is captured."""
JSONRPC_REQUEST_ID: Final = "jsonrpc.request.id"
"""Id of the JSON-RPC request, as text."""
RPC_RESPONSE_STATUS_CODE: Final = "rpc.response.status_code"
"""Code of a JSON-RPC error, as text: ``-32602``. Errors that are the caller's fault (-32700, -32600, -32601, -32602,
-32002) have no ``error.type`` and leave the span's status unset."""
ERROR_TYPE: Final = "error.type"
"""Kind of error: ``tool_error`` (every ``isError``, even for a wrong call: see ``otel_mcp.failure``), a JSON-RPC
code that is not the caller's fault, an HTTP status, ``cancelled``, ``disconnected`` or the class of an exception.
If a server without an SDK raises, it is the status that the client gets: ``500``."""
CLIENT_ADDRESS: Final = "client.address"
"""Address of the client; behind a trusted proxy, the one that the proxy reports."""
CLIENT_PORT: Final = "client.port"
"""Port of the client at that address; behind a trusted proxy only if the proxy reports it."""
ENDUSER_ID: Final = "enduser.id"
"""Caller in clear text: the claim that ``AUDIT_CALLER=claim:NAME`` names, of a token that the app has verified."""
ENDUSER_PSEUDO_ID: Final = "enduser.pseudo.id"
"""Caller as a keyed hash, which differs by service: of the user, else of the credential."""
USER_AGENT: Final = "user_agent.original"
"""The ``User-Agent`` header, at most 256 characters."""
USER_AGENT_NAME: Final = "user_agent.name"
"""Name of the client program in ``clientInfo``; the same as ``otel_mcp.client.name``, under the conventions' name."""
USER_AGENT_VERSION: Final = "user_agent.version"
"""Version of the client program in ``clientInfo``."""
SYNTHETIC_TYPE: Final = "user_agent.synthetic.type"
"""``bot`` for registries, scanners and monitors, ``test`` for your own checks."""
NETWORK_TRANSPORT: Final = "network.transport"
"""``tcp``."""
NETWORK_PROTOCOL_NAME: Final = "network.protocol.name"
"""``http``."""
NETWORK_PROTOCOL_VERSION: Final = "network.protocol.version"
"""``1.0``, ``1.1``, ``2`` or ``3``, else ``_OTHER``."""

HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
"""Status code of HTTP, an integer."""

EXECUTE_TOOL: Final = "execute_tool"
"""Value of ``gen_ai.operation.name`` on tool calls."""
TOOL_ERROR: Final = "tool_error"
"""Value of ``error.type`` for results with ``isError``."""
OTHER: Final = "_OTHER"
"""Replaces values beyond the bound of an attribute."""

# Attributes of our own.
SESSION_SOURCE: Final = "otel_mcp.session.source"
"""How the session was recognised: ``conversation``, ``header``, ``cookie``, ``inferred``, ``inferred_weak`` or
``none``."""
SESSION_END_REASON: Final = "otel_mcp.session.end.reason"
"""Why the session ended: ``client_delete``, ``expired``, ``server_closed`` or ``replaced``."""
SESSION_OUTCOME: Final = "otel_mcp.session.outcome"
"""How the session went: ``worked``, ``corrected``, ``looped``, ``retry_storm``, ``ping_pong``, ``gave_up``,
``no_call`` or ``probe``; decided from the order, digests and failures of its newest calls."""
SESSION_INTERRUPTED_CAUSE: Final = "otel_mcp.session.interrupted.cause"
"""Why a server refused a live session as unknown: ``restart`` (the process is younger, or the one that served the
session has ended), ``replica`` (another process serves it) or ``idle_reaper`` (the process itself closed it)."""
SESSION_RETURNED_WITHIN: Final = "otel_mcp.session.returned.within"
"""How soon the client came back: ``1m``, ``5m`` or ``30m``."""
SESSION_FINDING: Final = "otel_mcp.session.finding"
"""A pattern in a running session: ``looped``, ``retry_storm`` or ``ping_pong``."""
SESSION_FINDING_CALLS: Final = "otel_mcp.session.finding.calls"
"""Number of calls in the pattern, an integer; parallel calls count as one."""
SESSION_TOOL_CALLS: Final = "otel_mcp.session.tool_calls"
"""Number of tool calls in the session, an integer."""
SESSION_REQUESTS: Final = "otel_mcp.session.requests"
"""Number of requests in the session, of any method, an integer."""
SESSION_ERRORS: Final = "otel_mcp.session.errors"
"""Number of requests in the session that failed by the fault of the server or a tool, an integer."""
SESSION_CONTEXT_SIZE: Final = "otel_mcp.session.context.size"
"""Bytes that the session gave the model: lists of tools, and results of tools, prompts and resources; an integer."""
CLIENT_NAME: Final = "otel_mcp.client.name"
"""Name in ``clientInfo``, remembered for the session; on metrics at most 20 names, others are ``_OTHER``."""
CLIENT_VERSION: Final = "otel_mcp.client.version"
"""Version in ``clientInfo``, remembered for the session."""
TENANT: Final = "otel_mcp.tenant"
"""Tenant of the request, as configured by `TENANT`; absent if the request names none. On metrics at most 50, others are
``_OTHER``."""
FAILURE: Final = "otel_mcp.failure"
"""How a tool call failed: ``unknown_tool``, ``invalid_arguments`` (the caller's fault), ``tool`` (reported by the
tool), ``exception``, ``cancelled`` or ``refused`` (by a middleware or the protocol)."""
CALL_ROUND: Final = "otel_mcp.call.round"
"""Number of this request among those of one logical call, an integer: 1 if its result asks for input, 2 and more if the
request brings the input. Later ones link to the span of the first."""
CALL_DURATION: Final = "otel_mcp.call.duration"
"""Seconds from the arrival of a tool call until its result was sent, a double."""
CALL_RESULT_SIZE: Final = "otel_mcp.call.result.size"
"""Bytes of the answer to a tool call, an integer."""
CALL_ARGUMENTS_HASH: Final = "otel_mcp.call.arguments.hash"
"""Keyed hash of the arguments, up to 64 KiB, by which repeated calls can be recognised."""
AUDIT_NUMBER: Final = "otel_mcp.audit.number"
"""Number of the audit record in its process, from 1 on without gaps, an integer: a missing number is a lost record, a
repeated one was sent twice."""
TOOL_EXCEPTION_TYPE: Final = "otel_mcp.tool.exception.type"
"""Class of the exception that the tool raised, never its text."""
REJECT_REASON: Final = "otel_mcp.reason"
"""Why: ``limit``, ``principal``; of calls ``ended``, ``error``, ``foreign``, ``full``, ``principal``, ``shutdown``,
``interruptions``: refused requests that were not looked at for what they tell of a restart, ``rounds``: questions that
other replicas do not know of, ``tasks``: ends of tasks; of audit records ``error``, ``export``, ``full``,
``shutdown``, ``unconfigured``."""
STORE_OPERATION: Final = "otel_mcp.store.operation"
"""Operation on the store: ``flush``, ``recall``, ``sweep``, ``count``..."""
STORE_OUTCOME: Final = "otel_mcp.store.outcome"
"""Outcome of the operation: ``ok``, ``error``, ``denied`` (user, password or permissions) or ``timeout``."""
OBSERVER: Final = "otel_mcp.observer"
"""Name of the observer."""
HEADER: Final = "otel_mcp.header"
"""Header that contradicts the body: ``mcp-method``, ``mcp-name`` or ``mcp-protocol-version``."""
STREAM_KIND: Final = "otel_mcp.stream.kind"
"""Kind of stream: ``get``, ``listen`` (``subscriptions/listen``), ``sse`` (of 2024-11-05) or ``post`` (an answer to
a POST that streams for a second or more)."""
CATALOGUE_ADDED: Final = "otel_mcp.catalogue.added"
"""Names of new tools in the catalogue, at most 100."""
CATALOGUE_REMOVED: Final = "otel_mcp.catalogue.removed"
"""Names of tools that were removed from the catalogue, at most 100."""
CATALOGUE_CHANGED: Final = "otel_mcp.catalogue.changed"
"""Names of tools whose definition has changed: description, schema or anything else; at most 100."""
CATALOGUE_HASH: Final = "otel_mcp.catalogue.hash"
"""Keyed hash of the catalogue, independent of the order of tools."""
CATALOGUE_PREVIOUS_HASH: Final = "otel_mcp.catalogue.previous_hash"
"""Keyed hash of the catalogue that it is compared with: the known one that differs least."""
CATALOGUE_SIZE: Final = "otel_mcp.catalogue.size"
"""Bytes of the definitions of all tools, as sent, an integer."""
CATALOGUE_PREVIOUS_SIZE: Final = "otel_mcp.catalogue.previous_size"
"""Bytes of the catalogue that it is compared with, an integer."""
TASK_ID: Final = "otel_mcp.task.id"
"""Keyed hash of the task's id, the same on all replicas, and in the session document as ``task`` of the call."""
TASK_STATUS: Final = "otel_mcp.task.status"
"""``working``, ``input_required``, ``completed``, ``failed`` or ``cancelled``; of tasks that were out of sight before
their result was fetched, the last one seen, and ``_OTHER`` where they could not be followed: no room, or the store was
away when the process ended."""
COMPONENT: Final = "otel_mcp.component"
"""Component of this package that failed."""

# Metrics of the conventions.
METRIC_OPERATION_DURATION: Final = "mcp.server.operation.duration"
METRIC_CLIENT_DURATION: Final = "mcp.client.operation.duration"
METRIC_SESSION_DURATION: Final = "mcp.server.session.duration"

# Metrics of our own.
METRIC_SESSION_ACTIVE: Final = "otel_mcp.session.active"
METRIC_SESSION_LOCAL: Final = "otel_mcp.session.local"
METRIC_SESSION_STARTED: Final = "otel_mcp.session.started"
METRIC_SESSION_RESUMED: Final = "otel_mcp.session.resumed"
METRIC_SESSION_ENDED: Final = "otel_mcp.session.ended"
METRIC_SESSION_INTERRUPTED: Final = "otel_mcp.session.interrupted"
METRIC_SESSION_RETURNED: Final = "otel_mcp.session.returned"
METRIC_SESSION_FINDINGS: Final = "otel_mcp.session.findings"
METRIC_SESSION_REJECTED: Final = "otel_mcp.session.rejected"
METRIC_SESSION_TOOL_CALLS: Final = "otel_mcp.session.tool_calls"
METRIC_SESSION_CONTEXT_SIZE: Final = "otel_mcp.session.context.size"
METRIC_TOOL_RESULT_SIZE: Final = "otel_mcp.tool.result.size"
METRIC_TOOL_RESULT_OVERSIZED: Final = "otel_mcp.tool.result.oversized"
METRIC_TOOL_CALLS: Final = "otel_mcp.tool.calls"
METRIC_TOOL_DEFINITION_SIZE: Final = "otel_mcp.tool.definition.size"
METRIC_CATALOGUE_SIZE: Final = "otel_mcp.catalogue.size"
METRIC_CATALOGUE_TOOLS: Final = "otel_mcp.catalogue.tools"
METRIC_CLIENT_REQUESTS: Final = "otel_mcp.client.requests"
METRIC_CALLERS_ACTIVE: Final = "otel_mcp.callers.active"
METRIC_CALL_FAILURES: Final = "otel_mcp.call.failures"
METRIC_CALL_CORRECTED: Final = "otel_mcp.call.corrected"
METRIC_CALL_INPUT_WAIT: Final = "otel_mcp.call.input.wait"
METRIC_CALL_INPUT_ABANDONED: Final = "otel_mcp.call.input.abandoned"
METRIC_REQUESTS_REFUSED: Final = "otel_mcp.requests.refused"
METRIC_REQUESTS_ACTIVE: Final = "otel_mcp.requests.active"
METRIC_CALL_OLDEST: Final = "otel_mcp.call.oldest"
METRIC_STREAM_ACTIVE: Final = "otel_mcp.stream.active"
METRIC_STREAM_DURATION: Final = "otel_mcp.stream.duration"
METRIC_TRANSPORT_SESSIONS: Final = "otel_mcp.transport.sessions"
METRIC_TASK_STARTED: Final = "otel_mcp.task.started"
METRIC_TASK_DURATION: Final = "otel_mcp.task.duration"
METRIC_TASK_ACTIVE: Final = "otel_mcp.task.active"
METRIC_TASK_OLDEST: Final = "otel_mcp.task.oldest"
METRIC_TASK_UNFETCHED: Final = "otel_mcp.task.unfetched"
METRIC_HEADERS_CONTRADICTED: Final = "otel_mcp.headers.contradicted"
METRIC_STORE_DURATION: Final = "otel_mcp.store.operation.duration"
METRIC_STORE_PENDING: Final = "otel_mcp.store.pending"
METRIC_STORE_DROPPED: Final = "otel_mcp.store.dropped"
METRIC_STORE_DEGRADED: Final = "otel_mcp.store.degraded"
METRIC_AUDIT_DROPPED: Final = "otel_mcp.audit.dropped"
METRIC_OBSERVER_DROPPED: Final = "otel_mcp.observer.dropped"
METRIC_ERRORS: Final = "otel_mcp.errors"

OPERATION_BUCKETS: Final = (
    0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
"""Seconds; the boundaries of the conventions."""
SESSION_BUCKETS: Final = (*OPERATION_BUCKETS, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 43200.0, 86400.0)
"""Seconds; sessions and streams live for hours (semantic-conventions issue 3338)."""
TOOL_CALLS_BUCKETS: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
RESULT_SIZE_BUCKETS: Final = (
    100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0, 25_000.0, 50_000.0, 100_000.0, 250_000.0,
    1_000_000.0, 4_000_000.0, 16_000_000.0,
)  # fmt: skip
"""Bytes of the JSON-RPC response with the result; dense where most results are, for exact quantiles."""
CATALOGUE_BUCKETS: Final = (
    1_000.0, 2_500.0, 5_000.0, 10_000.0, 20_000.0, 40_000.0, 60_000.0, 80_000.0, 100_000.0, 150_000.0, 250_000.0,
    500_000.0, 1_000_000.0,
)  # fmt: skip
"""Bytes of the definitions of a catalogue; a token is about four."""
CONTEXT_BUCKETS: Final = (
    1_000.0, 2_500.0, 5_000.0, 10_000.0, 25_000.0, 50_000.0, 100_000.0, 250_000.0, 500_000.0, 1_000_000.0, 2_500_000.0,
    5_000_000.0, 10_000_000.0,
)  # fmt: skip
"""Bytes that a session gave the model; a token is about four."""
STORE_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

# Events (log records with an event name) and the session span.
EVENT_SESSION_START: Final = "session.start"
EVENT_CATALOGUE_CHANGED: Final = "catalogue.changed"
EVENT_SESSION_END: Final = "session.end"
EVENT_SESSION_FINDING: Final = "session.finding"
EVENT_SESSION_INTERRUPTED: Final = "session.interrupted"
EVENT_SESSION_RETURNED: Final = "session.returned"
EVENT_TOOL_CALL: Final = "otel_mcp.tool.call"
EVENT_REQUEST_REFUSED: Final = "otel_mcp.request.refused"
SPAN_SESSION: Final = "mcp.session"
