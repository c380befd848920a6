"""What is shown of a resource's URI."""

from __future__ import annotations

import pytest

from otel_mcp.wire.uris import resource_uri


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("file:///home/notes.txt", "file:///home/notes.txt"),
        ("postgres://app:secret@db:5432/orders/schema", "postgres://db:5432/orders/schema"),
        ("https://host/a@b?token=secret#secret", "https://host/a@b"),
        ("https://secret@host?token=secret", "https://host"),
        ("//user:secret@host/x", "//host/x"),
        ("memo:today#secret", "memo:today"),
        ("x" * 1000, "x" * 256),
        ("https://host/" + "x" * 2048, None),
        ("https://[::1]:8000/x", "https://[::1]:8000/x"),
        ("https://host:8000/@scope/name@1.0", "https://host:8000/@scope/name@1.0"),
        ("postgres://app:secret?x@db/t", "postgres://db/t"),
        ("postgres://app:secret#x@db/t", "postgres://db/t"),
        ("s3://key:sec/ret@bucket/x", "s3://bucket/x"),
        ("redis://default:secret/1@host/0", "redis://host/0"),
        ("https:/user:secret@host/x", "https:/host/x"),
        ("https:\\\\user:secret@host/x", "https:\\\\host/x"),
        ("https:user:secret@host/x", "https:host/x"),
        ("https://user%3Asecret%40host/x", "https://host/x"),
        ("https://user:secret@host/x?from=a@b", "https://host/x"),
        ("https://user:se@cret@host/x", "https://host/x"),
        ("user:secret@host/x", "user:host/x"),
        ("mailto:somebody@example.org", "mailto:example.org"),
        ("proxy://cache/https://user:secret@host/x", "proxy://cache/https://host/x"),
        ("proxy://cache/https%3A/user%3asecret%40host/x", "proxy://cache/https%3A/host/x"),
        ("jdbc:oracle:thin:user/secret@//host:1521/x", "jdbc://host:1521/x"),
        ("jdbc:sqlserver://host:1433;user=u;password=sec@ret", "jdbc:sqlserver://host:1433"),
        ("data:text/plain;base64,secret", "data:text/plain"),
        ("data:,secret", "data:"),
        ("res://\ud800", "res://?"),
        ("?token=secret", None),
        ("", None),
        (7, None),
        (None, None),
    ],
)
def test_a_resource_is_shown_without_what_may_be_secret(uri: object, shown: str | None) -> None:
    assert resource_uri({"uri": uri}) == shown
