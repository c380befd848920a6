"""What the package emits, for the reference: which attribute is on what, and when.

Names, units and texts are the package's own; this says only what no constant says. `tests` compares
it with what a running server emits, both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opentelemetry.semconv.attributes import http_attributes as http
from opentelemetry.semconv.attributes import server_attributes as server
from opentelemetry.semconv.attributes import url_attributes as url

from otel_mcp import semconv as names

ALWAYS: Final = "always"


@dataclass(frozen=True)
class Signal:
    """A kind of span, or an event."""

    name: str
    """As a reader of the reference sees it."""
    what: str
    attributes: dict[str, str]
    """Attribute -> when it is there."""


_SESSION: Final = {
    names.SESSION_ID: "if the session is known",
    names.SESSION_SOURCE: ALWAYS,
}
_FACTS: Final = {
    names.SESSION_ID: ALWAYS,
    names.SESSION_SOURCE: ALWAYS,
    names.SESSION_PREVIOUS_ID: "if it continues another",
    names.CLIENT_NAME: "if the client sent it",
    names.CLIENT_VERSION: "if the client sent it",
    names.USER_AGENT_NAME: "if the client sent it",
    names.USER_AGENT_VERSION: "if the client sent it",
    names.TENANT: "with `TENANT`, if a request names one",
    names.SYNTHETIC_TYPE: "a registry, a monitor or a test",
    names.MCP_PROTOCOL_VERSION: "if known",
}
_START: Final = {names.USER_AGENT: "if the client sent it"}
_END: Final = {
    names.SESSION_END_REASON: ALWAYS,
    names.SESSION_OUTCOME: ALWAYS,
    names.SESSION_TOOL_CALLS: ALWAYS,
    names.SESSION_REQUESTS: ALWAYS,
    names.SESSION_ERRORS: ALWAYS,
    names.SESSION_CONTEXT_SIZE: ALWAYS,
}

MESSAGE: Final = Signal(
    "`{method} {tool or prompt}`, else `{method}`",
    "SERVER. One for each JSON-RPC request; status ERROR where it has an `error.type`. Where "
    "the SDK 2.x or FastMCP 4 opens one, that span is completed while it is open: it says how the request ended on "
    "the wire, whatever has answered. The parent is the context in `params._meta` (the HTTP span is then linked), else "
    "the HTTP span, else what the configured propagators read of the headers.",
    _SESSION
    | {
        names.MCP_METHOD_NAME: ALWAYS,
        names.MCP_PROTOCOL_VERSION: "if known",
        names.MCP_SESSION_ID: "if an `Mcp-Session-Id` header carried it; never with `SESSION_ID=hashed`",
        names.GEN_AI_CONVERSATION_ID: "if the host sent one",
        names.GEN_AI_OPERATION_NAME: "`tools/call`",
        names.GEN_AI_TOOL_NAME: "`tools/call`",
        names.GEN_AI_PROMPT_NAME: "`prompts/get`",
        names.MCP_RESOURCE_URI: "`resources/read`, `/subscribe`, `/unsubscribe`",
        names.GEN_AI_TOOL_CALL_ARGUMENTS: "`CAPTURE_CONTENT`",
        names.GEN_AI_TOOL_CALL_RESULT: "`CAPTURE_CONTENT`",
        names.JSONRPC_REQUEST_ID: ALWAYS,
        names.RPC_RESPONSE_STATUS_CODE: "a JSON-RPC error",
        names.ERROR_TYPE: "it failed, except by a JSON-RPC error of the caller's fault",
        names.FAILURE: "a tool call that failed",
        names.TOOL_EXCEPTION_TYPE: "the tool raised",
        names.CALL_ROUND: "2026-07-28, where a result asks for input, and on the requests that bring it",
        names.TASK_ID: "a tool call that began a task, and requests about one",
        names.TASK_STATUS: "the same, where the answer says it; it links to the call that began the task",
        names.SESSION_PREVIOUS_ID: "if the session continues another",
        names.CLIENT_NAME: "if the client sent it",
        names.USER_AGENT_NAME: "if the client sent it",
        names.USER_AGENT_VERSION: "if the client sent it",
        names.TENANT: "with `TENANT`, if the request names one",
        names.CLIENT_ADDRESS: "if the server gives it",
        names.CLIENT_PORT: "if it is known for that address",
        names.NETWORK_TRANSPORT: ALWAYS,
        names.NETWORK_PROTOCOL_NAME: ALWAYS,
        names.NETWORK_PROTOCOL_VERSION: ALWAYS,
    },
)
ASKED: Final = Signal(
    "`elicitation/create`, `sampling/createMessage`, `roots/list`",
    "CLIENT, beneath the span of the call that asks its client. Made where no library opens one, as the SDK 2.x does.",
    {
        names.MCP_METHOD_NAME: ALWAYS,
        names.JSONRPC_REQUEST_ID: ALWAYS,
        names.ERROR_TYPE: "the client answered with an error, whose code it is, or not at all: `unanswered`",
        names.NETWORK_TRANSPORT: ALWAYS,
        names.NETWORK_PROTOCOL_NAME: ALWAYS,
        names.NETWORK_PROTOCOL_VERSION: ALWAYS,
        names.SESSION_ID: "if the session is known",
        names.SESSION_SOURCE: ALWAYS,
    },
)
SESSION: Final = Signal(
    f"`{names.SPAN_SESSION}`",
    "INTERNAL, a trace of its own. A whole session, from its first to its last activity, with links to its sampled "
    "calls. Written when it ends, by one process, with `SESSION_SPAN=true`.",
    _FACTS | _END,
)
BENEATH: Final = Signal(
    "every span beneath a message's",
    "Made by any library: the database's client, the HTTP client, the tool's own. What is there already is never "
    "overwritten.",
    {names.SESSION_ID: "if the session is known", names.SESSION_SOURCE: "where the session is known"},
)
HTTP: Final = Signal(
    "`{HTTP method} {path}`",
    "SERVER, scope `otel_mcp.http`. One for each HTTP request of MCP where nobody else instruments HTTP (`HTTP_SPAN`). "
    "Name and attributes are those of `opentelemetry-instrumentation-asgi`, with the stable names "
    "(`OTEL_SEMCONV_STABILITY_OPT_IN=http/dup` adds the old ones), the query left out. Headers are captured where "
    "`OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_…` ask for it. There are no HTTP metrics: they would have a "
    "series for each `Host` that somebody sends.",
    {
        http.HTTP_REQUEST_METHOD: ALWAYS,
        http.HTTP_RESPONSE_STATUS_CODE: "once it is answered",
        names.ERROR_TYPE: "it failed",
        url.URL_SCHEME: ALWAYS,
        url.URL_PATH: ALWAYS,
        server.SERVER_ADDRESS: "if the server gives it",
        server.SERVER_PORT: "if the server gives it",
        names.CLIENT_ADDRESS: "if the server gives it",
        names.CLIENT_PORT: "if it is known for that address",
        names.USER_AGENT: "if the client sent it",
        names.NETWORK_PROTOCOL_VERSION: ALWAYS,
    },
)
SPANS: Final = (MESSAGE, ASKED, SESSION, BENEATH, HTTP)

RECORD: Final = Signal(
    "every log record made inside a call",
    "By any library, by `logging` or the API of OpenTelemetry, in threads and tasks that have the context of the call, "
    "and after it. What is there already is never overwritten. See [logs.md](logs.md).",
    {
        names.SESSION_ID: "if the session is known",
        names.SESSION_SOURCE: "if the session is known",
        names.GEN_AI_TOOL_NAME: "`tools/call`",
    },
)
EVENTS: Final = (
    Signal(f"`{names.EVENT_SESSION_START}`", "A session began; emitted once across all replicas.", _FACTS | _START),
    Signal(
        f"`{names.EVENT_SESSION_FINDING}`",
        "A running session goes in circles; severity WARN, emitted once for each pattern, across all replicas. See "
        "[sessions.md](sessions.md#how-it-went).",
        _FACTS | {names.SESSION_FINDING: ALWAYS, names.SESSION_FINDING_CALLS: ALWAYS, names.GEN_AI_TOOL_NAME: ALWAYS},
    ),
    Signal(
        f"`{names.EVENT_SESSION_END}`",
        "A session ended; emitted once across all replicas, with the time of its last activity.",
        _FACTS | _END,
    ),
    Signal(
        f"`{names.EVENT_CATALOGUE_CHANGED}`",
        "A client was shown a catalogue that none was shown for a day; emitted once across all replicas. Not for the "
        "first one, and at most ten times an hour by each process.",
        {
            names.CATALOGUE_ADDED: "tools are new",
            names.CATALOGUE_REMOVED: "tools are gone",
            names.CATALOGUE_CHANGED: "definitions differ",
            names.CATALOGUE_HASH: ALWAYS,
            names.CATALOGUE_PREVIOUS_HASH: ALWAYS,
            names.CATALOGUE_SIZE: ALWAYS,
            names.CATALOGUE_PREVIOUS_SIZE: ALWAYS,
        },
    ),
    Signal(
        f"`{names.EVENT_SESSION_INTERRUPTED}`",
        "A server refused a session that lives, as one that it does not know (404, or 400); emitted once for each cut "
        "across all replicas, with the time of the first request that was refused.",
        _FACTS | {names.SESSION_INTERRUPTED_CAUSE: ALWAYS},
    ),
    Signal(
        f"`{names.EVENT_SESSION_RETURNED}`",
        "The client of such a session is back within half an hour: in that session, or with a new one, which names "
        "it as the one before. Emitted once across all replicas.",
        _FACTS | _START | {names.SESSION_RETURNED_WITHIN: ALWAYS},
    ),
    Signal(
        f"`{names.EVENT_TOOL_CALL}`",
        "A tool call has finished; with `AUDIT=events`, one for each that `mcp.server.operation.duration` counts, "
        "sampled or not, with its trace and span and the time at which it ended. See [audit.md](audit.md).",
        _SESSION
        | {
            names.SESSION_SOURCE: "if the session is known",
            names.AUDIT_NUMBER: ALWAYS,
            names.ENDUSER_PSEUDO_ID: "there is a caller, and `AUDIT_CALLER` is not `none`",
            names.ENDUSER_ID: "`AUDIT_CALLER=claim:NAME`, where a verified token has that claim, instead of the former",
            names.TENANT: "with `TENANT`, if one is named",
            names.CLIENT_NAME: "if the client sent it, bounded as on metrics",
            names.CLIENT_VERSION: "if the client sent one that looks like it, and its name is there",
            names.GEN_AI_TOOL_NAME: "if the call names one; `_OTHER`, where the server is not known to have it",
            names.CALL_ARGUMENTS_HASH: "if there are arguments, of 64 KiB at most",
            names.CALL_DURATION: ALWAYS,
            names.CALL_RESULT_SIZE: "if its size is known",
            names.ERROR_TYPE: "it failed, except by a JSON-RPC error of the caller's fault",
            names.RPC_RESPONSE_STATUS_CODE: "a JSON-RPC error",
            names.FAILURE: "it failed",
            names.CALL_ROUND: "2026-07-28, where a result asks for input, and of the requests that bring it",
        },
    ),
    Signal(
        f"`{names.EVENT_REQUEST_REFUSED}`",
        "Authentication refused a request (401, 403) before anybody read it; with `AUDIT=events`, at most 50 a second "
        "of each process. See [audit.md](audit.md).",
        {
            names.HTTP_RESPONSE_STATUS_CODE: ALWAYS,
            names.CLIENT_NAME: "if the client sent `User-Agent`, bounded as on metrics",
            names.GEN_AI_TOOL_NAME: "2026-07-28, a tool call; `_OTHER`, where the server is not known to have it",
            names.SESSION_ID: "if the request names a session that this process knows",
            names.SESSION_SOURCE: "the same",
            names.ENDUSER_PSEUDO_ID: "403: there is a caller, and `AUDIT_CALLER` is not `none`",
            names.ENDUSER_ID: "403: `AUDIT_CALLER=claim:NAME`, where a verified token has that claim",
        },
    ),
)

STANDARD_VARIABLES: Final = {
    "OTEL_SDK_DISABLED": "`true` switches everything off.",
    "OTEL_SERVICE_NAME": "Whose sessions these are: part of every id that is derived, and in the document.",
    "OTEL_RESOURCE_ATTRIBUTES": "`service.name` in it, where the above is not set.",
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "`otel_mcp` in it switches this package off.",
    "OTEL_PYTHON_EXCLUDED_URLS": "URLs to leave alone, where `EXCLUDED_URLS` is not set.",
    "OTEL_SEMCONV_STABILITY_OPT_IN": "`http/dup` in it puts the old names on our HTTP spans, too.",
    "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": (
        "`true`, `span_only` and `span_and_event` do what `CAPTURE_CONTENT=true` does."
    ),
}
"""Variables of OpenTelemetry that the package itself reads."""

RESPONSE_HEADERS: Final = {
    "mcp-session-id": (
        "An id of ours, on the answer to `initialize` of a server that gives none. The server's own stays."
    ),
    "x-session-id": "The session, on every answer of one below 400 that does not have it already.",
}
"""Headers that may be added to answers; `RESPONSE_HEADERS` chooses."""

REQUEST_HEADERS: Final = {
    "mcp-session-id": "The transport session.",
    "mcp-protocol-version": "The revision; tells that a request is MCP.",
    "mcp-method": "The method, where the body is too large to be read and does not begin with it (2026-07-28).",
    "mcp-name": "The tool or prompt, likewise.",
    "x-session-id": "A session that the client names.",
    "mcp-client-session-id": "A conversation, as SEP-2822 proposes.",
    "x-claude-code-session-id": "A conversation of Claude Code.",
    "x-hermes-session-id": "A conversation of Hermes.",
    "baggage": "`gen_ai.conversation.id` or `session.id` of an instrumented agent.",
    "cookie": "The session, only with `cookie` among `SESSION_SOURCES`.",
    "authorization": "Who calls, as a keyed hash; for a JWT its issuer and subject.",
    "x-api-key": "Who calls, as a keyed hash.",
    "api-key": "Who calls, as a keyed hash.",
    "user-agent": "The client program.",
    "origin": "A browser asks: it is given no session id of ours.",
    "forwarded": "The client's address, from `TRUSTED_PROXIES` with `PROXY_HEADER=forwarded`; else tells of a proxy.",
    "x-forwarded-for": "The client's address, from `TRUSTED_PROXIES`; with another `PROXY_HEADER` tells of a proxy.",
    "x-real-ip": "The client's address, from `TRUSTED_PROXIES` with `PROXY_HEADER=x-real-ip`; else tells of a proxy.",
    "via": "Tells of a proxy, whose address stands for many clients.",
}
"""Headers of requests that tell sessions, callers and parents."""

PLUMBING: Final = frozenset(
    {"accept", "accept-encoding", "content-encoding", "content-type", "host"},
)
"""Headers that are read to understand HTTP, and tell nothing of anybody."""
