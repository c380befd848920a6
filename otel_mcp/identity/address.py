"""Where a request comes from, and whether that tells one client from another."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from otel_mcp.wire.headers import HeaderMap

PROXY_HEADERS: Final = (b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip")
_FOR: Final = re.compile(r"""(?:^|;)\s*for=("[^"]*"|[^;,\s]+)""", re.IGNORECASE)
_MAX: Final = 2048
"""Characters of a header that are read."""
Network = IPv4Network | IPv6Network


def networks(names: tuple[str, ...]) -> tuple[Network, ...]:
    """Parse addresses and networks.

    Raises:
        ValueError: a name is no address and no network.
    """
    return tuple(ip_network(name, strict=False) for name in names)


def client_address(
    peer: str | None, headers: HeaderMap, trusted: tuple[Network, ...], http_version: str = "1.1"
) -> tuple[str | None, bool]:
    """The client's address, and whether it stands for one client.

    Behind a proxy that nobody told us to trust, every client has the proxy's
    address: then it stands for nobody. A proxy that adds no header is told by
    its HTTP/1.0, which no client of MCP speaks, and nginx does by default.
    """
    proxied = http_version == "1.0" or any(name in headers for name in PROXY_HEADERS)
    if not proxied:
        return peer, peer is not None
    if peer is None or not _within(peer, trusted):
        return peer, False
    # Right to left: each trusted proxy vouches for the hop that it wrote down.
    for hop in reversed(_hops(headers)):
        address = _address(hop)
        if address is None:
            return peer, False
        if not _within(str(address), trusted):
            return str(address), True
    return peer, False


def _hops(headers: HeaderMap) -> list[str]:
    if forwarded := headers.get(b"x-forwarded-for", b"").decode("latin-1"):
        return [hop for hop in forwarded[:_MAX].split(",") if hop.strip()]
    elements = headers.get(b"forwarded", b"").decode("latin-1")[:_MAX].split(",")
    return [match[1] for element in elements if (match := _FOR.search(element))]


def _address(hop: str) -> IPv4Address | IPv6Address | None:
    """The address of a hop, without quotes, brackets and port."""
    text = hop.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return ip_address(text)
    except ValueError:
        return None


def _within(address: str, trusted: tuple[Network, ...]) -> bool:
    parsed = _address(address)
    return parsed is not None and any(parsed in network for network in trusted)
