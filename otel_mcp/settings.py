"""Settings: keyword arguments, else ``OTEL_PYTHON_MCP_*``, else the default.

They are read once. An invalid value gives a warning and the default: a typing error
in a deployment must not stop the user's server.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_network
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

from pydantic import BeforeValidator, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

logger = logging.getLogger("otel_mcp")

PREFIX: Final = "OTEL_PYTHON_MCP_"
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""A comma-separated list in the environment, a tuple of strings in Python."""


class Settings(BaseSettings):
    """All settings with their defaults."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    redis_url: str | None = None
    """``redis``, ``rediss``, ``unix``, ``redis+sentinel`` or ``redis+cluster`` URL; unset = memory of this process."""
    redis_prefix: str = ""
    """Prefix of every key, for sharing a Redis."""
    service_name: str = Field(default_factory=lambda: _service_name())
    """Name of the service; by default from the OTEL resource variables."""

    session_ttl: Seconds = 3600.0
    """Seconds without activity after which a session ends."""
    session_idle_gap: Seconds = 1800.0
    """Seconds without activity after which an inferred session ends."""
    session_sources: Names = ("conversation", "header", "inferred")
    """Sources of sessions, in order of precedence; ``cookie`` can be added."""
    session_headers: Names = ()
    """Further request headers that carry a session id, after the standard ones."""
    session_cookie: str = "mcp_session"
    """Name of the cookie of the source ``cookie``."""
    conversation_keys: Names = ()
    """Further ``_meta`` keys that carry a conversation id."""
    probe_clients: Names = ()
    """Client names, or first products of user agents, of your own checks, whose sessions count as probes."""
    session_id: Literal["raw", "hashed"] = "raw"
    """``hashed`` = write the ids of transport sessions as keyed hashes only."""
    response_headers: Names = ("mcp-session-id", "x-session-id")
    """Headers that may be added to responses; ``none`` = no header."""
    trusted_proxies: Names = ()
    """Addresses or networks of proxies that are trusted to name the client's address."""
    proxy_header: Literal["x-forwarded-for", "forwarded", "x-real-ip"] = "x-forwarded-for"
    """The header in which these proxies name the client; other headers are ignored, since clients can send them."""
    max_new_sessions: int = Field(default=600, ge=1)
    """New sessions a minute in one process; further calls have no session."""
    max_sessions: int = Field(default=10_000, ge=1)
    """Sessions in the memory of one process."""
    max_tool_calls: int = Field(default=25, ge=1, le=500)
    """Newest tool calls in a document: at least this many, at most twice as many. Up to 500, since each write of a
    session writes all of them."""
    max_pending_calls: int = Field(default=10_000, ge=1)
    """Calls kept in memory while the store does not answer."""
    flush_interval: Seconds = 1.0
    """Seconds between two writes to Redis."""
    flush_calls: int = Field(default=256, ge=1)
    """Finished calls after which a write does not wait for the interval."""
    sweep_interval: Seconds = 10.0
    """Seconds between two sweeps for expired sessions."""

    http_span: Literal["auto", "on", "off"] = "auto"
    """Whether to open an HTTP server span; ``auto`` = unless another instrumentation does."""
    session_span: bool = False
    """Emit one ``mcp.session`` span when a session ends."""
    store_content: bool = False
    """Keep arguments and results of tool calls in the session document."""
    capture_content: bool = False
    """Put arguments and results on spans, as ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` does."""
    redaction_hook: str | None = None
    """``module:name`` of a function that gets each captured value and returns it redacted."""
    excluded_urls: str | None = None
    """Comma-separated regular expressions of URLs that are not observed."""
    tenant: str | None = None
    """Where a request names its tenant, a label of requests, sessions and sizes of results: ``claim:NAME`` of a token
    that the app has verified, ``header:NAME``, or ``path:N``, the N-th part of the path."""
    tenant_names: Names = ()
    """Tenants that get a label value before others; at most 50 get one, the rest is ``_OTHER``."""
    observers: Names = ()
    """``module:name`` of observers, in addition to those found by entry point."""
    audit: Literal["off", "events"] = "off"
    """``events`` = one log record for each tool call: who, what, when, outcome. See [audit.md](audit.md)."""
    audit_caller: str = "hash"
    """The caller on audit records: ``hash``, ``none``, or ``claim:NAME`` of a token that the app has verified."""
    log_calls: bool = False
    """Log a line for each failed or slow tool call, at most 60 a minute."""
    slow_call: Seconds = 5.0
    """Seconds from which a call counts as slow for ``LOG_CALLS``."""
    agent_model: str | None = None
    """Model that the observer agent (extra `agent`) asks about sessions that struggle; unset = no agent."""
    agent_url: str | None = None
    """Base URL of the agent's endpoint, such as ``http://127.0.0.1:11434/v1``, with the key in
    ``OTEL_PYTHON_MCP_AGENT_KEY``; unset = ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``."""
    agent_calls: int = Field(default=10, ge=1, le=1000)
    """Questions of the agent an hour, of all replicas together."""
    agent_content: bool = False
    """With ``STORE_CONTENT``: the agent's model gets arguments and results, after the redaction hook."""
    jaeger_url: str | None = None
    """Address of Jaeger's pages, for links of the command line."""
    grafana_url: str | None = None
    """Address of Grafana's pages, for links of the command line."""
    hash_key: str | None = None
    """Key of all hashes; unset = shared through Redis, or random without Redis."""

    @field_validator("session_headers", "response_headers", mode="after")
    @classmethod
    def _lower(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(name.isascii() for name in value):
            raise ValueError("no name of a header")
        return tuple(name.lower() for name in value)

    @field_validator("proxy_header", mode="before")
    @classmethod
    def _lower_name(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("tenant", mode="after")
    @classmethod
    def _where(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"claim:.+|header:[!-9;-~]+|path:[1-9]", value):
            raise PydanticCustomError("form", "path:1, claim:NAME or header:NAME")
        return value.lower() if value is not None and value.startswith("header:") else value

    @field_validator("audit_caller", mode="after")
    @classmethod
    def _callers(cls, value: str) -> str:
        if value not in ("hash", "none") and not re.match(r"claim:\S+\Z", value):
            raise PydanticCustomError("form", "hash, none or claim:NAME")
        return value

    @field_validator("trusted_proxies", mode="after")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            ip_network(name, strict=False)
        return value

    @field_validator("excluded_urls", mode="after")
    @classmethod
    def _patterns(cls, value: str | None) -> str | None:
        try:
            re.compile("|".join((value or "").split(",")))
        except re.error as error:
            raise ValueError("no regular expression") from error
        return value

    @field_validator("jaeger_url", "grafana_url", "agent_url", mode="after")
    @classmethod
    def _pages(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^\s<>\"']+\Z", value):
            raise ValueError("no URL of a page")
        return value

    @field_validator("session_sources", mode="after")
    @classmethod
    def _known_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(value) - {"conversation", "header", "cookie", "inferred", "none"}:
            raise ValueError(f"unknown session source: {', '.join(sorted(unknown))}")
        return value


CONFLICTS: Final[tuple[tuple[str, str, Callable[[Settings], bool]], ...]] = (
    ("session_headers", "`SESSION_SOURCES` is without `header`", lambda s: "header" not in s.session_sources),
    ("session_cookie", "`SESSION_SOURCES` is without `cookie`", lambda s: "cookie" not in s.session_sources),
    (
        "conversation_keys",
        "`SESSION_SOURCES` is without `conversation`",
        lambda s: "conversation" not in s.session_sources,
    ),
    (
        "session_idle_gap",
        "it is longer than `SESSION_TTL`, which ends inferred sessions as well",
        lambda s: s.session_idle_gap > s.session_ttl,
    ),
    (
        "response_headers",
        "`Mcp-Session-Id` is given out, but `SESSION_SOURCES` is without `header`, so it is not read",
        lambda s: "mcp-session-id" in s.response_headers and "header" not in s.session_sources,
    ),
    ("proxy_header", "`TRUSTED_PROXIES` names nobody who may write it", lambda s: not s.trusted_proxies),
    (
        "redaction_hook",
        "neither `CAPTURE_CONTENT` nor `STORE_CONTENT` is on",
        lambda s: not (captures_content(s) or s.store_content),
    ),
    ("tenant_names", "`TENANT` is not set", lambda s: s.tenant is None),
    ("audit_caller", "`AUDIT` is off", lambda s: s.audit == "off"),
    ("slow_call", "`LOG_CALLS` is off", lambda s: not s.log_calls),
    *(
        (f"agent_{name}", "`AGENT_MODEL` is not set", lambda s: s.agent_model is None)
        for name in ("url", "calls", "content")
    ),
    ("agent_content", "`STORE_CONTENT` is off", lambda s: s.agent_model is not None and not s.store_content),
    ("redis_prefix", "`REDIS_URL` is not set", lambda s: s.redis_url is None),
)
"""Settings that have no effect: the name, the reason, and a function that returns whether the reason applies."""


def load(**overrides: Any) -> Settings:
    """Read the settings; keyword arguments win over the environment.

    Logs a warning for each setting that is invalid, and uses its default, and for each
    that has no effect because of another. Warnings do not contain values, as a URL may
    contain a password.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    settings, bad = _read(given)
    for name, reason, applies in CONFLICTS:
        if name in settings.model_fields_set - bad and applies(settings):
            logger.warning("otel_mcp: %s%s has no effect: %s", PREFIX, name.upper(), reason.replace("`", ""))
    return settings


def _read(given: dict[str, Any]) -> tuple[Settings, set[str]]:
    """Read the settings; also return the names of invalid ones."""
    try:
        return Settings(**given), set()
    except ValidationError as error:
        bad = {str(part["loc"][0]).lower(): _takes(part) for part in error.errors() if part["loc"]}
    for name, takes in sorted(bad.items()):
        logger.warning("otel_mcp: %s%s cannot be used%s; the default stands", PREFIX, name.upper(), takes)
    fields = Settings.model_fields
    defaults = {name: fields[name].get_default(call_default_factory=True) for name in bad if name in fields}
    return Settings(**{**given, **defaults}), set(bad)


def _takes(error: ErrorDetails) -> str:
    """Describe the valid values, without the text of the error, which may contain the value."""
    if error["type"] == "form":
        return f" (it takes {error['msg']})"
    return f" (it takes {error['ctx']['expected']})" if error["type"] == "literal_error" and "ctx" in error else ""


@lru_cache(maxsize=1)
def _service_name() -> str:
    """Read the service's name as the SDK does: values are percent-encoded, and the last of several counts."""
    named = "unknown_service"
    for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        name, _, value = pair.partition("=")
        if name.strip() == "service.name":
            named = unquote(value.strip())
    return os.environ.get("OTEL_SERVICE_NAME") or named


def captures_content(settings: Settings) -> bool:
    """Return whether arguments and results may be put on spans."""
    asked = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "")
    return settings.capture_content or asked.strip().lower() in {"true", "span_only", "span_and_event"}
