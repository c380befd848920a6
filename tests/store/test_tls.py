"""Redis behind TLS, as SECURITY.md has it: the peer is verified, on both sides where both ask for it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from otel_mcp.store.base import ProducerId, StoreDown
from otel_mcp.store.redis.store import RedisStore
from tests.support.stores import Server, delta, facts, flush, free_port, settings

pytestmark = pytest.mark.anyio


class Authority:
    """Certificates of a test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                  "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip

    def issue(self, name: str, addresses: str = "") -> tuple[str, str]:
        """A certificate and its key, as files."""
        self._run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                  "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={addresses}\n" if addresses else "")
        self._run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                  "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem")  # fmt: skip
        return str(self.folder / f"{name}.pem"), str(self.folder / f"{name}.key")

    @property
    def file(self) -> str:
        return str(self.folder / "ca.pem")

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    try:
        return Authority(tmp_path_factory.mktemp("tls"))
    except FileNotFoundError:
        pytest.skip("no openssl on PATH")


class Secured:
    """A server with a TLS port next to the plain one that tests watch it by."""

    def __init__(self, authority: Authority, certificate: tuple[str, str], *, mutual: bool) -> None:
        self.port = free_port()
        self.server = Server(
            "redis",
            *("--tls-port", str(self.port)),
            *("--tls-cert-file", certificate[0]),
            *("--tls-key-file", certificate[1]),
            *("--tls-ca-cert-file", authority.file),
            *("--tls-auth-clients", "yes" if mutual else "no"),
        )

    def url(self, **options: str) -> str:
        query = "&".join(f"{name}={quote(value)}" for name, value in options.items())
        return f"rediss://127.0.0.1:{self.port}?{query}"


@pytest.fixture(scope="module")
def named(authority: Authority) -> tuple[str, str]:
    return authority.issue("server", "IP:127.0.0.1")


@pytest.fixture(scope="module")
def one_sided(authority: Authority, named: tuple[str, str]) -> Iterator[Secured]:
    secured = Secured(authority, named, mutual=False)
    yield secured
    secured.server.close()


@pytest.fixture(scope="module")
def mutual(authority: Authority, named: tuple[str, str]) -> Iterator[Secured]:
    secured = Secured(authority, named, mutual=True)
    yield secured
    secured.server.close()


async def write(url: str) -> int:
    """Flush a call; return what the document counts."""
    store, now = RedisStore(settings(url)), time.time()
    try:
        await store.apply([flush(ProducerId(), delta(1, of=facts(at=now), at=now))])
        state = await store.load("abc")
        return 0 if state is None else state.tool_call_count
    finally:
        await store.delete("abc")
        await store.aclose()


async def test_sessions_are_written_over_tls(one_sided: Secured, authority: Authority) -> None:
    assert await write(one_sided.url(ssl_ca_certs=authority.file)) == 1


async def test_a_server_that_nobody_vouches_for_gets_nothing(one_sided: Secured) -> None:
    with pytest.raises(StoreDown):
        await write(one_sided.url())


async def test_a_server_of_another_name_gets_nothing(authority: Authority) -> None:
    other = Secured(authority, authority.issue("other", "DNS:elsewhere.invalid"), mutual=False)
    try:
        with pytest.raises(StoreDown):
            await write(other.url(ssl_ca_certs=authority.file))
    finally:
        other.server.close()


async def test_with_a_certificate_of_ours_where_the_server_asks_for_one(mutual: Secured, authority: Authority) -> None:
    certificate, key = authority.issue("client")

    assert await write(mutual.url(ssl_ca_certs=authority.file, ssl_certfile=certificate, ssl_keyfile=key)) == 1


async def test_without_one_it_is_an_outage_and_no_crash(mutual: Secured, authority: Authority) -> None:
    with pytest.raises(StoreDown):
        await write(mutual.url(ssl_ca_certs=authority.file))
