"""What is found of a Redis: real servers that refuse, forbid, evict, are full, replicas or nodes of a cluster."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from otel_mcp.cli.doctor import redis
from otel_mcp.cli.doctor.report import Finding, guarded
from otel_mcp.cli.document import Document
from otel_mcp.cli.store import Reader
from otel_mcp.settings import Settings
from tests.support.doctor import only, unwell
from tests.support.stores import Server, free_port
from tests.support.waiting import wait_until


def found(url: str | None, **settings: Any) -> list[Finding]:
    return asyncio.run(guarded("redis", redis.check(Settings(redis_url=url, service_name="shop", **settings)), 8))


async def newest(url: str) -> list[Document]:
    """What the index and a scan of all keys find."""
    reader = Reader(Settings(redis_url=url))
    members, _ = await reader.index(10)
    documents = [*await reader.documents(name for name, _ in members), *await reader.scan("", 10, is_of_any=True)]
    await reader.aclose()
    return documents


@contextmanager
def running(*options: str) -> Generator[Server]:
    server = Server("valkey", *options)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as server:
        yield server


@pytest.fixture
def clean(server: Server) -> Iterator[Any]:
    """A client; configuration and users are put back after the test."""
    client = server.client()
    yield client
    client.config_set("maxmemory", 0)
    client.config_set("maxmemory-policy", "noeviction")
    for user in ("shop", "reader"):
        client.execute_command("ACL", "DELUSER", user)
    client.config_set("requirepass", "")


def test_healthy_redis_is_left_as_it_was(server: Server) -> None:
    findings = found(server.url)

    assert unwell(findings) == []
    assert re.match(rf"{server.url} answers in [\d.]+ ms, Valkey 9", only(findings, "redis").found)
    assert server.client().keys("*") == []


def test_redis_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "OLDEST", 99)
    server = Server("redis")
    (finding,) = found(server.url)
    server.close()

    assert finding.status == "FAIL"
    assert finding.found.endswith(": sessions need Redis 99.0 or newer")


def test_redis_that_is_not_configured() -> None:
    (finding,) = found(None)

    assert (finding.status, finding.mend) == ("warn", "export OTEL_PYTHON_MCP_REDIS_URL=redis://localhost:6379/0")


@pytest.mark.parametrize("url", ["http://cache:6379", "cache:6379", "redis://cache:port", "redis://h?db=x"])
def test_url_that_is_none_of_redis(url: str) -> None:
    (finding,) = found(url)

    assert finding.status == "FAIL"
    assert "is not a valid Redis URL" in finding.found


def test_redis_that_refuses_connections() -> None:
    url = f"redis://someone:hunter2@127.0.0.1:{free_port()}/0"

    (finding,) = found(url)

    assert finding.status == "FAIL"
    assert finding.found.endswith("refuses connections: nothing listens there")
    assert "USER:PASSWORD@127.0.0.1" in (finding.mend or "")
    assert "hunter2" not in str(finding)


def test_password_that_is_wrong_or_missing(server: Server, clean: Any) -> None:
    clean.execute_command("ACL", "SETUSER", "shop", "on", ">right", "~*", "+@all")

    (wrong,) = found(f"redis://shop:hunter2@127.0.0.1:{server.port}")
    clean.config_set("requirepass", "right")
    (missing,) = found(server.url)

    assert wrong.found == f"redis://127.0.0.1:{server.port} rejects this user and password"
    assert missing.found == f"{server.url} requires a password"
    assert missing.mend == f"export OTEL_PYTHON_MCP_REDIS_URL=redis://USER:PASSWORD@127.0.0.1:{server.port}"
    assert "hunter2" not in str(wrong)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("~* +@all -hset -pexpire", "has no permission for HSET, PEXPIRE"),
        ("~* +@all -eval", "has no permission for EVAL"),
        ("~* +@all -zadd", "has no permission for ZADD"),
        ("~mcp_session:* ~{mcp_session:* +@all", "has no permission for "),
        ("~other:* +@all", "some keys"),
        ("~* +@read", "has no permission for EVAL"),
    ],
)
def test_user_who_may_not_do_what_we_do(server: Server, clean: Any, rules: str, words: str) -> None:
    clean.execute_command("ACL", "SETUSER", "shop", "on", ">right", *rules.split())
    url = f"redis://shop:right@127.0.0.1:{server.port}"

    permissions = only(found(url), "permissions")

    assert permissions.status == "FAIL"
    assert words in permissions.found
    # The mending line is enough.
    mend = (permissions.mend or "").removeprefix("redis-cli ").replace("'", "").split()
    clean.execute_command("ACL", "SETUSER", "shop", "reset")
    clean.execute_command("ACL", "SETUSER", "shop", "on", ">right")
    clean.execute_command(*mend)
    assert unwell(found(url)) == []


def test_database_that_is_not_there(server: Server) -> None:
    (finding,) = found(f"{server.url}/99")

    assert finding.found == f"{server.url}/99 has no database of that number"


def test_prefix_is_part_of_the_keys_that_must_be_allowed(server: Server, clean: Any) -> None:
    clean.execute_command("ACL", "SETUSER", "shop", "on", ">right", "+@all", "~mcp_session:*", "~{mcp_*", "~otel_mcp:*")
    url = f"redis://shop:right@127.0.0.1:{server.port}"

    permissions = only(found(url, redis_prefix="team:"), "permissions")

    assert permissions.status == "FAIL"
    assert "'~team:mcp_session:*'" in (permissions.mend or "")
    assert unwell(found(url)) == []


def test_commands_that_are_asked_about_are_all_that_we_use() -> None:
    sources = resources.files("otel_mcp.store.redis")
    scripts = "".join(path.read_text() for path in sources.joinpath("lua").iterdir())
    python = "".join(path.read_text() for path in sources.iterdir() if path.name.endswith(".py"))
    used = set(re.findall(r"p?call\('([A-Z]+)'", scripts)) | set(re.findall(r'Run\(\s*"([A-Z]+)"', python))

    asked = {command.split()[0] for command in redis.SESSION_COMMANDS + redis.INDEX_COMMANDS}

    assert asked == used | {"EVAL", "EVALSHA"}


def test_documented_rules_are_those_that_are_proposed() -> None:
    text = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text()

    assert redis.acl("shop", "") in " ".join(text.replace("\\\n", " ").split())


@pytest.mark.parametrize(
    ("policy", "limit", "status"),
    [
        ("allkeys-lru", "100mb", "FAIL"),
        ("allkeys-random", "100mb", "FAIL"),
        ("allkeys-lru", "0", "warn"),
        ("volatile-lru", "100mb", "warn"),
        ("volatile-lru", "0", "ok"),
        ("noeviction", "100mb", "ok"),
    ],
)
def test_redis_that_evicts(server: Server, clean: Any, policy: str, limit: str, status: str) -> None:
    clean.config_set("maxmemory-policy", policy)
    clean.config_set("maxmemory", limit)

    memory = only(found(server.url), "memory")

    assert memory.status == status
    assert memory.found.startswith(policy)
    assert (memory.mend == "redis-cli CONFIG SET maxmemory-policy noeviction") is (status != "ok")


def test_redis_without_room(server: Server, clean: Any) -> None:
    used = int(clean.info("memory")["used_memory"])
    clean.config_set("maxmemory", used // 2)
    full = found(server.url)
    clean.config_set("maxmemory", int(used * 1.05))
    nearly = found(server.url)

    assert unwell(full) == [("memory", "FAIL")]
    assert unwell(nearly) == [("memory", "warn")]


def test_replica_takes_no_writes(server: Server) -> None:
    with running("--replicaof", f"127.0.0.1 {server.port}") as replica:
        (finding,) = found(replica.url)

    assert finding.status == "FAIL"
    assert finding.mend == f"export OTEL_PYTHON_MCP_REDIS_URL=redis://127.0.0.1:{server.port}/0"


def test_replica_is_noticed_where_the_user_may_not_ask(server: Server) -> None:
    with running("--replicaof", f"127.0.0.1 {server.port}") as replica:
        replica.client().execute_command("ACL", "SETUSER", "shop", "on", ">right", "~*", "+@all", "-info")
        findings = found(f"redis://shop:right@127.0.0.1:{replica.port}")

    assert "rejects writes" in findings[0].found or "rejects writes" in findings[1].found
    assert only(findings, "memory").status == "skip"


def test_redis_that_waits_for_replicas_takes_no_writes(server: Server, clean: Any) -> None:
    clean.config_set("min-replicas-to-write", 1)
    try:
        findings = found(server.url)
    finally:
        clean.config_set("min-replicas-to-write", 0)

    assert ("redis", "FAIL") in unwell(findings)


def test_cluster_and_its_scheme(server: Server) -> None:
    with running("--cluster-enabled", "yes") as node:
        node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        assert wait_until(lambda: b"cluster_state:ok" in node.client().execute_command("CLUSTER", "INFO"))
        at = f"127.0.0.1:{node.port}"
        (plain,) = found(f"redis://{at}")
        assert plain.mend == f"export OTEL_PYTHON_MCP_REDIS_URL=redis+cluster://{at}"
        healthy = found(f"redis+cluster://{at}")
        (denied,) = found(f"redis+cluster://shop:hunter2@{at}")
        node.client().config_set("maxmemory-policy", "allkeys-lru")
        node.client().config_set("maxmemory", "100mb")
        evicting = found(f"redis+cluster://{at}")
        assert asyncio.run(newest(f"redis+cluster://{at}")) == []
    (no_cluster,) = found(f"redis+cluster://127.0.0.1:{server.port}")

    assert unwell(healthy) == []
    assert denied.found == f"redis+cluster://{at} rejects this user and password"
    assert unwell(evicting) == [("memory", "FAIL")]
    assert no_cluster.mend == f"export OTEL_PYTHON_MCP_REDIS_URL=redis://127.0.0.1:{server.port}"


def test_tls_and_its_scheme(server: Server, tmp_path: Path) -> None:
    key, pem = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, key)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(reader, outer), pump(inner, writer), return_exceptions=True)

    async def ask() -> tuple[list[Finding], ...]:
        async with await asyncio.start_server(forward, "localhost", 0, ssl=context) as proxy:
            at = f"localhost:{proxy.sockets[0].getsockname()[1]}"
            return (
                await asyncio.to_thread(found, f"redis://{at}/0"),
                await asyncio.to_thread(found, f"rediss://{at}/0"),
                await asyncio.to_thread(found, f"rediss://{at}/0?ssl_ca_certs={pem}"),
            )

    plain, distrusted, trusted = asyncio.run(ask())
    (secure_at_plain,) = found(f"rediss://127.0.0.1:{server.port}/0")

    assert (plain[0].mend or "").startswith("export OTEL_PYTHON_MCP_REDIS_URL=rediss://localhost:")
    assert "?ssl_ca_certs=/path/to/ca.pem" in (distrusted[0].mend or "")
    assert unwell(trusted) == []
    assert secure_at_plain.mend == f"export OTEL_PYTHON_MCP_REDIS_URL=redis://127.0.0.1:{server.port}/0"
