"""The records of the hot path: one `Exchange` for an HTTP request, one `Call` for a message in it.

Facts flow one way: `exchange` and `integrations` fill these records, telemetry
and the session store read them. A ContextVar holds the record itself, so that
every holder sees facts that are learned later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum, auto
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any, Final, cast

from otel_mcp.wire.jsonrpc import other_form, text

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext

    from otel_mcp.model.rounds import Round
    from otel_mcp.model.session import Claim, Principal, Session
    from otel_mcp.model.task import CallTask
    from otel_mcp.wire.catalogue import Listing
    from otel_mcp.wire.headers import HeaderMap
    from otel_mcp.wire.jsonrpc import Failure, JsonId, Message, Outcome

SCOPE_KEY: Final = "otel_mcp"
"""Key of the `Exchange` in the ASGI scope; if present, a seam has seen the request."""

CLIENT_INFO: Final = "io.modelcontextprotocol/clientInfo"
MODERN: Final = "2026-07-28"
"""First revision without sessions; revisions are dates, so they compare as text."""

current_call: ContextVar[Call | None] = ContextVar("otel_mcp_call", default=None)

current_exchange: ContextVar[Exchange | None] = ContextVar("otel_mcp_exchange", default=None)
"""The exchange that the current context works for; it may have ended."""


@dataclass(slots=True, eq=False)
class Call:
    """One request or notification of a client, from its arrival to its outcome."""

    exchange: Exchange
    method: str
    id: JsonId | None
    """``None`` = a notification."""
    target: str | None
    """Tool or prompt."""
    params: Mapping[str, Any]
    meta: Mapping[str, Any]

    dispatched: bool = False
    """A seam has run its handler under its span, so the span is fixed, sampled or not."""
    accepted: bool = False
    """The SDK handed it to its handler, so the server accepted it."""
    tentative: bool = False
    """Its session is only proposed: nothing is written before the server accepts the message."""
    pending_session_id: str | None = None
    """The id of the session that begins if this ``initialize`` succeeds."""
    rate_limited: bool = False
    """It has no session because of the limit on new ones; counted once."""
    running: bool = False
    """Its handler has not returned yet."""
    finished: bool = False
    outcome: Outcome | None = None
    handler_outcome: Outcome | None = None
    """The outcome that the dispatch seam saw; used if the wire shows none."""
    duration: float = 0.0
    """Seconds."""
    result_bytes: int | None = None

    session: Session | None = None
    claim: Claim | None = None
    """The claim that identified the session."""
    span: Span | None = None
    """The only server span of this message, a library's or ours."""
    open_span: Span | None = None
    """Our own span, if the handler has returned and the answer is still to come."""
    span_context: SpanContext | None = None
    link: SpanContext | None = None
    """The ambient HTTP span, if the parent comes from ``_meta``."""
    arguments: object = None
    """Of a finished tool call, since its parameters are released."""
    result: object = None
    """Only while content capture is on."""
    cancel_key: tuple[str, str | None, JsonId] | None = None
    """Identifies it for a cancellation: transport session, user and id."""
    cancel_requested: bool = False
    """The client has sent ``notifications/cancelled`` for it."""
    id_unknown: bool = False
    """The body was too large to read: method and target are from the headers, `id` is not known."""
    trusted_name: bool = False
    """The server itself knows a tool or prompt of this name."""
    unlisted: bool = False
    """The server itself knows no tool of this name."""
    tool_entered: bool = False
    """The seam at tools has seen a call of a tool."""
    tools_observed: bool = False
    """The seam at tools sees every tool of this server."""
    tool_failure: Failure | None = None
    """How its tool failed, as the seam at tools saw it; a middleware may have handled the failure."""
    failure: Failure | None = None
    """How the tool call failed, if it did."""
    tenant: str | None = None
    """The customer that the request belongs to, once known."""
    listing: Listing | None = None
    """The result of a ``tools/list``, if its answer was read."""
    round: Round | None = None
    """Set if a logical call takes several requests, or may."""
    task: CallTask | None = None
    """The task that it begins or asks about, once its result is seen."""
    dispatch: Any = None
    """The `Dispatch` of the exchange layer, while its handler runs."""


def client_info(call: Call) -> tuple[str | None, str | None]:
    """Read name and version of the client, from ``initialize`` or from the request's ``_meta``."""
    info = call.params.get("clientInfo") if call.method == "initialize" else call.meta.get(CLIENT_INFO)
    if not isinstance(info, dict):
        return None, None
    fields = cast("dict[str, object]", info)
    name, version = fields.get("name"), fields.get("version")
    return text(name, 128) if isinstance(name, str) else None, text(version, 64) if isinstance(version, str) else None


def client_of(call: Call) -> tuple[str | None, str | None]:
    """Return name and version of the client, from the request or remembered by its session."""
    if call.session is not None and call.session.facts.client_name is not None:
        return call.session.facts.client_name, call.session.facts.client_version
    return client_info(call)


class Reading(Enum):
    """How an answer is read, from its headers on."""

    NOTHING = auto()
    """Not at all: it has not begun, has no reply to a call, or cannot be read."""
    SIZE = auto()
    """Only its size: it is the result of the one call."""
    QUIET_STREAM = auto()
    """An event stream of which nothing had to be read yet."""
    STREAM = auto()
    """Event by event."""
    JSON = auto()
    """Once it is whole."""


_no_calls = cast("Callable[[], list[Call]]", list)
"""A function of our own would cost each request one more call."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One HTTP request with its answer."""

    http_method: str
    path: str
    headers: HeaderMap
    http_version: str = "1.1"
    client: str | None = None
    """Address of the client: the peer's, or what a trusted proxy says."""
    client_port: int | None = None
    """Port at that address, if known."""
    scope: Mapping[str, Any] | None = None
    """The innermost scope seen; released when the request is over, since it refers to this record."""
    protocol_version: str | None = None
    """First as header or body asks for it, then as the server agreed."""
    wire_session_id: str | None = None
    """The ``Mcp-Session-Id`` that the client sent, even if we remove it before the app."""
    transport_id: str | None = None
    """The transport session that the client names: by that header, else (2024-11-05) by the ``session_id`` of the
    query, or of the ``endpoint`` event that contains it."""
    confirmed: bool = False
    """Whether it surely is MCP; else the body or the stream decides later."""
    ambient: Context | None = None
    """OpenTelemetry context for the message's span: inside any HTTP instrumentation if that is known. Its span has not
    ended."""
    capture: Callable[[Any], str | None] | None = None
    """Turns arguments and results into span attributes; ``None`` = neither may be captured."""
    tenant_of: Callable[[Exchange], str | None] | None = None
    """Reads the tenant; ``None`` = no setting names one."""
    hides_ids: bool = False
    """Ids of transport sessions must not be written anywhere."""
    http_decided: bool = False
    """Whether it is known if the HTTP span is ours or another library's."""

    client_is_shared: bool = False
    """The client's address is a proxy's, so many clients share it."""
    user: object = None
    """The user that an authentication middleware put into the scope, once read."""
    caller: tuple[object, int, Principal] | None = None
    """Cache of `principal.caller`: its user, the generation of the hash key, and the result."""
    waited: float = 0.0
    """Seconds that it has waited for the session store."""
    started_ns: int = field(default_factory=time_ns)
    """Unix nanoseconds."""
    started: float = field(default_factory=perf_counter)
    """Seconds of `perf_counter`."""

    minted: str | None = None
    """The id that we add, or have added, to the answer of this ``initialize``."""
    owns_sessions: bool | None = None
    """Whether the server keeps sessions of its own; ``None`` = not known."""
    server_session_id: str | None = None
    """The id that the server itself put on its response."""

    calls: list[Call] = field(default_factory=_no_calls)
    body_size: int = 0
    unparsed_body: bytes | bytearray | None = None
    """The request body, while the seam at the SDK is expected to parse it."""
    parsed: bool = False
    """The body has been read as far as needed, possibly parsed by an SDK."""
    foreign: bool = False
    """Its body is not MCP, so its answer is not read, unless an SDK gets the request."""
    at_sdk: bool = False
    """It has reached the transport of an SDK."""
    routed: bool = False
    """A function behind a route is the handler."""
    attaches_inside: bool = False
    """An inner patch attaches the span of the message, so the handler does not."""
    dispatch: Any = None
    """The `AppDispatch` of its one call, if the handler is the HTTP app itself."""
    http_span: Span | None = None
    """The HTTP server span, if it is ours and has not ended."""
    stream: tuple[str, str | None] | None = None
    """Session and user of a GET stream that may carry replies."""
    sse_endpoint: bool = False
    """It is the GET stream of 2024-11-05, which is the session."""
    session: Session | None = None
    transport_session: Session | None = None
    """The session of the transport id, if a conversation may take precedence."""

    sdk_call: Call | None = None
    """The one message of the request, a tool call, that an SDK has accepted: its outcome is known before its answer."""
    reading: Reading = Reading.NOTHING
    """How the answer is read."""
    foreseen: bool | None = None
    """Whether an answer that waits to begin says that ``initialize`` has succeeded; ``None`` = not known."""
    status: int | None = None
    responded: bool = False
    """The last byte of the answer has been sent."""
    disconnected: bool = False
    """The client left before that."""
    closed: bool = False
    """The app has returned."""
    raised: bool = False
    """The app has raised, so its answer is incomplete."""

    @property
    def shown_session_id(self) -> str | None:
        """The ``Mcp-Session-Id`` on the wire, for spans; ``None`` if there is none or it must not be shown."""
        if self.hides_ids or self.modern:
            return None
        return self.wire_session_id or self.server_session_id or self.minted

    def see_user(self) -> object:
        """Return the user that the app has authenticated so far; middlewares and dependencies set it."""
        if self.scope is not None:
            self.user = self.scope.get("user")
        return self.user

    @property
    def modern(self) -> bool:
        return (self.protocol_version or "") >= MODERN

    def add(self, message: Message) -> Call:
        """Add the call of a message in the body."""
        call = Call(self, message.method, message.id, message.target, message.params, message.meta)
        self.calls.append(call)
        return call

    def forget_calls(self) -> None:
        """Release the calls of a closed request once all are over, else they and it refer to each other forever.

        A notification is answered before the SDK handles it, and then the SDK has to find it.
        """
        if self.closed and all(call.dispatched and call.finished and not call.running for call in self.calls):
            self.calls.clear()
            self.sdk_call = self.dispatch = None

    def find(self, request_id: JsonId | None, method: str | None = None) -> Call | None:
        """Find the call with that id, and that method if given; text may have become a number."""
        alike = None
        for call in self.calls:
            if method is None or call.method == method:
                if call.id == request_id:
                    return call
                alike = call if request_id is not None and call.id == other_form(request_id) else alike
        return alike
