"""Names of keys, and which ids are believed."""

from __future__ import annotations

import pytest
from redis.crc import key_slot

from otel_mcp.store.redis.codec import Keys, agreed_id


@pytest.mark.parametrize("prefix", ["", "app:", "{app}:", "a}b{:", "{}:"])
@pytest.mark.parametrize("session_id", ["abc", "a{b}c", "a}b", "{}"])
def test_all_keys_of_a_session_share_a_slot(prefix: str, session_id: str) -> None:
    keys = Keys(prefix, "svc")
    document, stats = keys.session(session_id)

    assert len({document, stats, keys.successor(session_id)}) == 3
    assert key_slot(document.encode()) == key_slot(stats.encode()) == key_slot(keys.successor(session_id).encode())


def test_a_prefix_stands_before_every_key() -> None:
    keys = Keys("app:", "svc")

    assert keys.session("abc") == ("app:mcp_session:abc", "{app:mcp_session:abc}:stats")
    assert keys.deadlines == "app:otel_mcp:svc:deadlines"
    assert keys.agreement("client:1") == "app:otel_mcp:svc:client:1"


@pytest.mark.parametrize("value", [None, b"", b"a b", b"a\r\nset-cookie: b", b"\xff", b"x" * 129])
def test_only_an_id_that_a_replica_wrote_is_believed(value: bytes | None) -> None:
    assert agreed_id(value) is None
    assert agreed_id(b"a.b_c-1") == "a.b_c-1"
