"""From a URL to an asyncio Redis client that gives up early.

Left to its defaults redis-py stalls for nine seconds on a server that hangs.
Nothing connects before the first command.
"""

from __future__ import annotations

from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from otel_mcp.store.redis.cluster import Cluster

TIMEOUT: Final = 0.5
"""Seconds for connecting and for each reply."""
CONNECTIONS: Final = 16
"""At most, to one server: a flush, lookups, and what tools load and save."""
AT_ONCE: Final = 12
"""Commands or pipelines under way in one loop, the others wait: redis-py has no patience where all connections are
taken, and a cluster client needs some to ask about slots."""


class Pipeline(Protocol):
    """Commands that travel together."""

    def execute_command(self, *args: Any) -> Any: ...

    async def execute(self, raise_on_error: bool = True) -> list[Any]: ...


class Client(Protocol):
    """What we use of redis-py's clients."""

    async def execute_command(self, *args: Any) -> Any: ...

    def pipeline(self, transaction: Any = None) -> Pipeline: ...

    async def aclose(self) -> None: ...


def connect(url: str, **options: Any) -> Client:
    """A client for a ``redis``, ``rediss``, ``unix``, ``redis+sentinel`` or ``redis+cluster`` URL.

    ``redis+sentinel://host:port,host:port/service/db`` and
    ``redis+cluster://host:port,host:port``, with ``rediss+`` for TLS. The query
    takes redis-py's options; ``sentinel_username`` and ``sentinel_password``
    are for the sentinels themselves. `options` are redis-py's as well, and yield to those of the URL.

    Raises:
        ValueError: the URL cannot be used.
    """
    settings = {**_options(), **options}
    scheme, _, kind = urlsplit(url).scheme.partition("+")
    if kind == "sentinel":
        return _sentinel(url, scheme, settings)
    if kind == "cluster":
        return _cluster(url, scheme, settings)
    return cast(Client, Redis.from_url(url, **settings))  # pyright: ignore[reportUnknownMemberType]


def _options() -> dict[str, Any]:
    return {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        "health_check_interval": 0,
        "max_connections": CONNECTIONS,
        # One id with half a surrogate pair must not keep a batch from being sent.
        "encoding_errors": "replace",
        # What every server from 6.2 on speaks, without a handshake.
        "protocol": 2,
    }


def _hosts(url: str, scheme: str, port: int) -> tuple[list[tuple[str, int]], list[str], dict[str, Any]]:
    """Hosts, the segments of the path, and redis-py's options."""
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    plain = urlunsplit((scheme, f"{user}@host" if user else "host", "", parts.query, ""))
    options = dict(cast("dict[str, Any]", parse_url(plain)))
    for name in ("host", "port", "db", "connection_class"):
        options.pop(name, None)
    nodes: list[tuple[str, int]] = []
    for host in hosts.split(","):
        node = urlsplit(f"//{host.strip()}")
        if node.hostname:
            nodes.append((node.hostname, node.port or port))
    if not nodes:
        raise ValueError("the Redis URL names no host")
    return nodes, [segment for segment in parts.path.split("/") if segment], options


def _sentinel(url: str, scheme: str, given: dict[str, Any]) -> Client:
    hosts, path, options = _hosts(url, scheme, 26379)
    own = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    settings: dict[str, Any] = {**given, **options, "ssl": scheme == "rediss"}
    sentinels = Sentinel(  # pyright: ignore[reportUnknownVariableType]
        hosts,
        sentinel_kwargs={**settings, **own},
        **settings,
    )
    service = path[0] if path else "mymaster"
    master: Any = sentinels.master_for(  # pyright: ignore[reportUnknownMemberType]
        service, db=int(path[1]) if len(path) > 1 else 0
    )
    return cast(Client, master)


def _cluster(url: str, scheme: str, given: dict[str, Any]) -> Client:
    hosts, _, options = _hosts(url, scheme, 6379)
    return cast(Client, Cluster(hosts, **{**given, **options, "ssl": scheme == "rediss"}))
