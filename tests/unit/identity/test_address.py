"""The address of a client, and whether it stands for one client."""

from __future__ import annotations

import json
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.identity.address import Client, Clients, networks
from tests.support.answers import Server
from tests.support.asgi import JSON_HEADERS, make_scope, request
from tests.support.messages import MODERN_HEADERS, modern
from tests.support.providers import Telemetry
from tests.unit.conftest import MakeRuntime

PROXY = "10.0.0.1"
TRUSTED = ("10.0.0.0/8", "2001:db8::/32", "192.0.2.7")
HEADERS = ("x-forwarded-for", "forwarded", "x-real-ip")


def read(header: str, *lines: str, peer: str | None = PROXY, **others: str) -> Client:
    """What a server concludes that believes `header`, of which a request has these lines, and other headers."""
    given = [(header, line) for line in lines] + [(name.replace("_", "-"), value) for name, value in others.items()]
    client = (peer, 5000) if peer is not None else None
    return Clients(TRUSTED, header).of(make_scope(headers=given, client=client))


def found(address: str, port: int | None = None) -> Client:
    return Client(address, port, is_shared=False)


def nobody(peer: str | None = PROXY) -> Client:
    return Client(peer, 5000 if peer is not None else None, is_shared=True)


def test_without_an_address_there_is_nobody_to_tell_apart() -> None:
    assert read("x-forwarded-for", "203.0.113.9", peer=None) == nobody(None)


@pytest.mark.parametrize("header", HEADERS)
def test_behind_a_proxy_that_nobody_trusts_an_address_stands_for_nobody(header: str) -> None:
    assert read(header, "for=198.51.100.1", peer="203.0.113.9") == nobody("203.0.113.9")


def test_a_trusted_proxy_tells_the_client() -> None:
    assert read("x-forwarded-for", "203.0.113.9") == found("203.0.113.9")
    assert read("x-forwarded-for", "2001:db9::5", peer="2001:db8::1") == found("2001:db9::5")
    assert read("x-forwarded-for", "203.0.113.9", peer="::ffff:10.0.0.1") == found("203.0.113.9")
    assert read("forwarded", "for=203.0.113.9") == found("203.0.113.9")
    assert read("x-real-ip", "203.0.113.9") == found("203.0.113.9")


@pytest.mark.parametrize("written", HEADERS)
@pytest.mark.parametrize("own", [*HEADERS, "via", "x-client-ip"])
def test_only_the_header_that_the_proxy_writes_is_read(written: str, own: str) -> None:
    if own != written:
        made_up = {own.replace("-", "_"): "for=6.6.6.6" if own == "forwarded" else "6.6.6.6"}
        proxied = "for=203.0.113.9" if written == "forwarded" else "203.0.113.9"
        assert read(written, proxied, **made_up) == found("203.0.113.9")
        assert read(written, **made_up) == nobody()


def test_each_trusted_proxy_vouches_for_the_hop_before_it() -> None:
    assert read("x-forwarded-for", "6.6.6.6, 203.0.113.9, 192.0.2.7") == found("203.0.113.9")
    assert read("x-forwarded-for", "6.6.6.6", "203.0.113.9", "192.0.2.7") == found("203.0.113.9")
    assert read("forwarded", "for=6.6.6.6", "for=203.0.113.9") == found("203.0.113.9")
    assert read("forwarded", 'for="x, for=6.6.6.6', "for=203.0.113.9") == found("203.0.113.9")
    assert read("x-real-ip", "6.6.6.6", "203.0.113.9") == found("203.0.113.9")


def test_however_much_a_client_writes_the_hop_of_the_proxy_is_read() -> None:
    assert read("x-forwarded-for", "6.6.6.6, " * 1000 + "203.0.113.9") == found("203.0.113.9")
    assert read("forwarded", "for=6.6.6.6, " * 1000 + "for=203.0.113.9") == found("203.0.113.9")


@pytest.mark.parametrize("lines", [["10.1.1.1, 10.2.2.2"], [], [""], [" , ,"]])
def test_no_client_is_known_where_every_hop_is_a_trusted_proxy(lines: list[str]) -> None:
    assert read("x-forwarded-for", *lines) == nobody()


@pytest.mark.parametrize("hop", ["unknown", "_hidden", "-", "localhost", "x" * 1000])
@pytest.mark.parametrize("header", HEADERS)
def test_a_hop_that_is_no_address_stands_for_nobody(header: str, hop: str) -> None:
    assert read(header, f"203.0.113.9, {hop}") == nobody()
    assert read(header, f"for=203.0.113.9, for={hop}") == nobody()


@pytest.mark.parametrize(
    ("hop", "client"),
    [
        ("203.0.113.9:51234", found("203.0.113.9", 51234)),
        ("[2001:db9::5]:51234", found("2001:db9::5", 51234)),
        ("[2001:db9::5]", found("2001:db9::5")),
        ("203.0.113.9:_port", found("203.0.113.9")),
        ("203.0.113.9:0", found("203.0.113.9")),
        ("203.0.113.9:65536", found("203.0.113.9")),
        ("203.0.113.9:" + "9" * 1000, found("203.0.113.9")),
    ],
)
def test_a_port_is_no_part_of_the_address(hop: str, client: Client) -> None:
    assert read("x-forwarded-for", hop) == read("forwarded", f'for="{hop}"') == client


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("for=203.0.113.9;proto=https;by=10.0.0.1", found("203.0.113.9")),
        ('For="203.0.113.9:4711"', found("203.0.113.9", 4711)),
        ("for=6.6.6.6, for=203.0.113.9;proto=http, for=10.9.9.9", found("203.0.113.9")),
        ("for=_secret", nobody()),
        ("for=203.0.113.9, proto=https", nobody()),
        ("nonsense", nobody()),
        ("for=", nobody()),
        (";;,,", nobody()),
    ],
)
def test_the_standard_header_is_read_as_it_is_defined(forwarded: str, client: Client) -> None:
    assert read("forwarded", forwarded) == client


def test_networks_and_single_addresses_can_be_trusted() -> None:
    assert [str(network) for network in networks(("10.1.2.3/8", "192.0.2.7", "::1"))] == [
        "10.0.0.0/8",
        "192.0.2.7/32",
        "::1/128",
    ]
    with pytest.raises(ValueError, match="proxy"):
        networks(("proxy",))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "peer", "version", "expected"),
    [
        ([], "203.0.113.9", "1.1", ("203.0.113.9", 5000, "inferred_weak")),
        ([], "203.0.113.9", "2", ("203.0.113.9", 5000, "inferred_weak")),
        ([], "203.0.113.9", "1.0", ("203.0.113.9", 5000, "none")),
        ([("via", "1.1 proxy")], "203.0.113.9", "1.1", ("203.0.113.9", 5000, "none")),
        ([("forwarded", "for=198.51.100.1")], PROXY, "1.0", ("198.51.100.1", None, "inferred_weak")),
        ([("forwarded", "for=_x"), ("x-forwarded-for", "6.6.6.6")], PROXY, "1.1", (PROXY, 5000, "none")),
        (
            [("forwarded", 'for="198.51.100.1:99"'), ("x-forwarded-for", "6.6.6.6")],
            PROXY,
            "1.1",
            ("198.51.100.1", 99, "inferred_weak"),
        ),
    ],
)
async def test_the_span_names_the_client_and_not_the_proxy(
    headers: list[tuple[str, str]],
    peer: str,
    version: str,
    expected: tuple[Any, ...],
    make_runtime: MakeRuntime,
    telemetry: Telemetry,
) -> None:
    app = MCPMiddleware(Server(), make_runtime(trusted_proxies="10.0.0.0/8", proxy_header="forwarded"))
    scope = make_scope(headers=[*JSON_HEADERS, *MODERN_HEADERS, *headers], client=(peer, 5000))

    await request(app, {**scope, "http_version": version}, [json.dumps(modern()).encode()])

    attributes = dict(telemetry.span().attributes or {})
    names = ("client.address", "client.port", "otel_mcp.session.source")
    assert tuple(attributes.get(name) for name in names) == expected
