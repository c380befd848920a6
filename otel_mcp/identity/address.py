"""Find the address of a client behind trusted proxies, and whether several clients share it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, NamedTuple

from otel_mcp.wire import headers as wire_headers

PROXY_HEADERS: Final = frozenset({b"x-forwarded-for", b"forwarded", b"via", b"x-real-ip"})
"""Each of them shows that the request passed a proxy."""
_FOR: Final = re.compile(r"""(?:^|;)\s*for=("[^"]*"|[^;,\s]+)""", re.IGNORECASE)
_MAX: Final = 2048
"""Characters read from the end of a header, where the nearest proxy writes."""


def networks(names: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    """Parse addresses and networks.

    Raises:
        ValueError: a name is neither an address nor a network.
    """
    return tuple(ip_network(name, strict=False) for name in names)


class Client(NamedTuple):
    """The address of a client."""

    address: str | None
    port: int | None
    is_shared: bool
    """The address is that of a proxy, so many clients have it."""


class Clients:
    """Finds the client behind trusted proxies.

    Reads only the header that these proxies write. Proxies pass on any other header, so
    a client can send it.
    """

    def __init__(self, trusted: tuple[str, ...], header: str) -> None:
        """Use `header` of requests from the `trusted` addresses and networks."""
        self._trusted = networks(trusted)
        self._header = header.encode()

    def of(self, scope: Mapping[str, Any]) -> Client:
        """Return the client of a request that passed a proxy; all clients of an untrusted proxy have its address."""
        peer = scope.get("client")
        address, port = (str(peer[0]), peer[1]) if peer else (None, None)
        if address is not None and self._trusts(_parsed(address)[0]):
            # Right to left: a hop is true if a trusted proxy wrote it.
            for hop in self._hops(wire_headers.pairs(scope)):
                found, found_port = _parsed(hop)
                if found is None:
                    break
                if not self._trusts(found):
                    return Client(str(found), found_port, is_shared=False)
        return Client(address, port, is_shared=True)

    def _hops(self, headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
        """Return the hops of the header, the nearest first. Some proxies add a header line of their own."""
        lines = [value for name, value in headers if name == self._header]
        if self._header == b"x-real-ip":
            return [line[-_MAX:].decode("latin-1") for line in lines[-1:]]
        text = b",".join(lines)[-_MAX:].decode("latin-1")
        elements = [element for element in reversed(text.split(",")) if element.strip()]
        if self._header == b"x-forwarded-for":
            return elements
        return [match[1] if (match := _FOR.search(element)) else "" for element in elements]

    def _trusts(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)


def _parsed(hop: str) -> tuple[IPv4Address | IPv6Address | None, int | None]:
    """Return the address of a hop, without quotes and brackets, and its port; ``None`` = none."""
    text, port = hop.strip().strip('"'), ""
    if text.startswith("["):
        text, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
    try:
        address = ip_address(text)
    except ValueError:
        return None, None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # Dual-stack sockets show IPv4 peers so.
    is_port = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65_536
    return address, (int(port) or None) if is_port else None
