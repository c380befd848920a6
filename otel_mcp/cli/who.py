"""``otel-mcp who``: show the hashes that stand for a person on audit records and in lists of sessions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import aclosing
from typing import Final, NamedTuple

from otel_mcp.cli.rows import Field, Format, write
from otel_mcp.cli.store import CALLER_DIGITS, Connection, configured, run
from otel_mcp.cli.terminal import Code, Failure, Terminal, say
from otel_mcp.hashing import KeyedHashes
from otel_mcp.identity.principal import CREDENTIALS, as_user, audited, principal
from otel_mcp.settings import PREFIX, Settings, load
from otel_mcp.store.redis.codec import Keys

_STDIN: Final = "-"


class Identity(NamedTuple):
    """The hashes of a person, for one way in which a server may know the person."""

    known_by: str
    pseudo_id: str
    caller: str | None
    """The hash in `otel-mcp sessions`; credentials have none."""


FIELDS: Final[tuple[Field[Identity], ...]] = (
    Field("ENDUSER_PSEUDO_ID", lambda one: one.pseudo_id, "enduser_pseudo_id"),
    Field("CALLER", lambda one: one.caller, "caller"),
    Field("KNOWN_BY", lambda one: one.known_by, "known_by"),
)


def who(
    terminal: Terminal,
    redis_url: str | None,
    service: str | None,
    subject: str,
    issuer: str | None,
    client_id: str | None,
    form: Format | None,
    *,
    headers: bool,
) -> None:
    """Write the hashes of one person.

    Raises:
        Failure: there is no hash key, or no name.
    """
    settings = load(redis_url=redis_url)
    if not settings.hash_key and not settings.redis_url:
        raise Failure(
            Code.USAGE, "there is no hash key", f"set {PREFIX}HASH_KEY or {PREFIX}REDIS_URL to the server's value"
        )
    name, hashes = service or settings.service_name, KeyedHashes()
    hashes.learn(settings.hash_key.encode() if settings.hash_key else run(_agreed(redis_url, name), settings))
    if subject == _STDIN:
        credential = _read_credential()
        known = [("credential", principal(None, {b"authorization": credential}, hashes))] if credential else []
    else:
        known = [(way, as_user(*names, hashes=hashes)) for way, names in _ways(subject, issuer, client_id)]
    if not subject or not known:
        raise Failure(Code.USAGE, "no name was given")
    found = [
        Identity(way, audited(hashes, name, one.digest), one.user and one.user[:CALLER_DIGITS]) for way, one in known
    ]
    write(terminal, found, FIELDS, form, "caller", headers=headers, service=name)


def _read_credential() -> bytes:
    """Read the value of a header from standard input: bytes, as they come over the wire; the name may stand before."""
    line = sys.stdin.buffer.readline().strip()
    name, sign, value = line.partition(b":")
    if sign and name.strip().lower() in CREDENTIALS:
        line = value.strip()
    if line and b" " not in line:
        say(
            "there is no scheme: these are the hashes of a whole value without one, as of x-api-key. "
            "For a token in Authorization write: Bearer TOKEN"
        )
    return line


def _ways(subject: str, issuer: str | None, client_id: str | None) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "name of the user in the scope", ("user", "name", subject)
    if issuer is not None:
        yield "token that nobody has verified", ("jwt", issuer, subject)
    if client_id is not None:
        yield "token that the app has verified", ("user", client_id, str(issuer), subject)


async def _agreed(redis_url: str | None, service: str) -> bytes:
    """Return the hash key that the replicas of a service share."""
    settings: Settings = configured(redis_url)
    connection = Connection(settings)
    async with aclosing(connection.client):
        (key,) = await connection.run_all(("GET", Keys(settings.redis_prefix, service).agreement("hash-key")))
    if not isinstance(key, bytes):
        hint = f"name the service with --service, or set {PREFIX}HASH_KEY to the server's value"
        raise Failure(Code.NOT_FOUND, f"the replicas of {service} share no hash key", hint)
    return key
