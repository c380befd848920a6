"""Where a request comes from, and whether that tells one client from another."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from otel_mcp.wire.headers import HeaderMap

_PROXY_HEADERS: Final = (b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip")
Network = IPv4Network | IPv6Network


def networks(names: tuple[str, ...]) -> tuple[Network, ...]:
    """Parse addresses and networks; what is neither is left out.

    Raises:
        ValueError: a name is no address and no network.
    """
    return tuple(ip_network(name, strict=False) for name in names)


def client_address(peer: str | None, headers: HeaderMap, trusted: tuple[Network, ...]) -> tuple[str | None, bool]:
    """The client's address, and whether it stands for one client.

    Behind a proxy that nobody told us to trust, every client has the proxy's
    address: then it stands for nobody.
    """
    proxied = any(name in headers for name in _PROXY_HEADERS)
    if not proxied:
        return peer, peer is not None
    if peer is None or not _within(peer, trusted):
        return peer, False
    # Right to left: each trusted proxy vouches for the hop that it wrote down.
    hops = [hop.strip() for hop in headers.get(b"x-forwarded-for", b"").decode("latin-1").split(",") if hop.strip()]
    for hop in reversed(hops):
        if not _within(hop, trusted):
            return hop[:64], True
    return peer, False


def _within(address: str, trusted: tuple[Network, ...]) -> bool:
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in trusted)
