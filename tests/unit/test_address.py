"""The address of a client, and whether it stands for one client."""

from __future__ import annotations

import pytest

from otel_mcp.identity.address import client_address, networks

PROXY = "10.0.0.1"
TRUSTED = networks(("10.0.0.0/8", "2001:db8::/32", "192.0.2.7"))


def told(peer: str | None, **headers: str) -> tuple[str | None, bool]:
    given = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    return client_address(peer, given, TRUSTED)


def test_without_a_proxy_the_peer_is_the_client() -> None:
    assert told("203.0.113.9") == ("203.0.113.9", True)


def test_without_an_address_there_is_nobody_to_tell_apart() -> None:
    assert told(None) == (None, False)
    assert told(None, x_forwarded_for="203.0.113.9")[1] is False


@pytest.mark.parametrize("header", ["x_forwarded_for", "forwarded", "via", "x_real_ip"])
def test_behind_a_proxy_that_nobody_trusts_an_address_stands_for_nobody(header: str) -> None:
    assert told("203.0.113.9", **{header: "198.51.100.1"})[1] is False


def test_a_trusted_proxy_tells_the_client() -> None:
    assert told(PROXY, x_forwarded_for="203.0.113.9") == ("203.0.113.9", True)
    assert told("2001:db8::1", x_forwarded_for="2001:db9::5") == ("2001:db9::5", True)


def test_each_trusted_proxy_vouches_for_the_hop_before_it_and_a_client_for_nothing() -> None:
    assert told(PROXY, x_forwarded_for="6.6.6.6, 203.0.113.9, 192.0.2.7") == ("203.0.113.9", True)


def test_where_every_hop_is_a_proxy_of_ours_nobody_is_told() -> None:
    assert told(PROXY, x_forwarded_for="10.1.1.1, 10.2.2.2")[1] is False
    assert told(PROXY, via="1.1 proxy")[1] is False
    assert told(PROXY, x_forwarded_for="")[1] is False
    assert told(PROXY, x_forwarded_for=" , ,")[1] is False


@pytest.mark.parametrize("hop", ["unknown", "_hidden", "-", "localhost", "x" * 1000])
def test_a_hop_that_is_no_address_stands_for_nobody(hop: str) -> None:
    assert told(PROXY, x_forwarded_for=hop)[1] is False


@pytest.mark.parametrize(
    ("hop", "address"),
    [("203.0.113.9:51234", "203.0.113.9"), ("[2001:db9::5]:51234", "2001:db9::5"), ("[2001:db9::5]", "2001:db9::5")],
)
def test_a_port_is_no_part_of_the_address(hop: str, address: str) -> None:
    assert told(PROXY, x_forwarded_for=hop) == (address, True)


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("for=203.0.113.9;proto=https;by=10.0.0.1", "203.0.113.9"),
        ('For="203.0.113.9:4711"', "203.0.113.9"),
        ('for="[2001:db9::5]:4711"', "2001:db9::5"),
        ("for=6.6.6.6, for=203.0.113.9;proto=http, for=10.9.9.9", "203.0.113.9"),
    ],
)
def test_the_standard_header_of_a_trusted_proxy_is_believed_as_well(forwarded: str, address: str) -> None:
    assert told(PROXY, forwarded=forwarded) == (address, True)


@pytest.mark.parametrize("forwarded", ["for=unknown", "for=_secret", "proto=https", "nonsense", "for=", ";;,,"])
def test_a_standard_header_without_an_address_stands_for_nobody(forwarded: str) -> None:
    assert told(PROXY, forwarded=forwarded)[1] is False


def test_networks_and_single_addresses_can_be_trusted() -> None:
    assert [str(network) for network in networks(("10.1.2.3/8", "192.0.2.7", "::1"))] == [
        "10.0.0.0/8",
        "192.0.2.7/32",
        "::1/128",
    ]
    with pytest.raises(ValueError, match="proxy"):
        networks(("proxy",))


def test_a_proxy_that_adds_no_header_is_known_by_its_old_http() -> None:
    assert client_address("127.0.0.1", {}, (), "1.0") == ("127.0.0.1", False)
    assert client_address(PROXY, {b"x-forwarded-for": b"203.0.113.9"}, TRUSTED, "1.0") == ("203.0.113.9", True)
    assert client_address("127.0.0.1", {}, (), "2") == ("127.0.0.1", True)
