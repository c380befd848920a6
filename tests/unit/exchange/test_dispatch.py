"""A message is found again only in the scope of its own HTTP request."""

from __future__ import annotations

from types import SimpleNamespace

from otel_mcp.exchange.dispatch import exchange_of
from otel_mcp.model.call import SCOPE_KEY, Exchange


def test_an_exchange_is_found_only_in_the_scope_of_its_own_request() -> None:
    exchange = Exchange("POST", "/mcp", {})

    assert exchange_of(SimpleNamespace(scope={SCOPE_KEY: exchange})) is exchange
    for request in (None, SimpleNamespace(), SimpleNamespace(scope=None), SimpleNamespace(scope={SCOPE_KEY: "x"})):
        assert exchange_of(request) is None
