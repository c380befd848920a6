"""Tasks at two replicas, one of which is killed: what is reported equals what their client saw."""

from __future__ import annotations

import json
import secrets
from collections import Counter

import httpx2
import pytest
from redis import Redis

from otel_mcp.types import Message
from tests.process.conftest import Servers
from tests.support.messages import MODERN
from tests.support.servers import PROMPT, SDK, Launch, Server
from tests.support.tasks import of
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.anyio]

QUICK = {**PROMPT, "OTEL_PYTHON_MCP_SWEEP_INTERVAL": "0.5"}
BUILDING = Launch(SDK, "building", "uvicorn tasks_app:app --port={port}", environment=QUICK)
STATUS, TOOL = "otel_mcp.task.status", {"gen_ai.tool.name": "build"}
RUNNING = {**TOOL, STATUS: "working"}


class Client:
    """Sends messages to a replica, and keeps the ledger."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def ask(self, method: str, /, **params: object) -> Message:
        message, headers = of(MODERN, method, secrets.randbelow(10**6), **params)
        message["params"]["_meta"] |= {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}},
        }
        own = {"accept": "application/json, text/event-stream", **dict(headers)}
        if "taskId" in params:
            own["mcp-name"] = str(params["taskId"])
        return (await self._http.post("/mcp", json=message, headers=own)).json()["result"]

    async def begin(self) -> str:
        return (await self.ask("tools/call", name="build", arguments={}))["taskId"]


async def test_tasks_outlive_the_replica_that_began_them_and_are_counted_once(servers: Servers) -> None:
    service = f"tasks-{secrets.token_hex(3)}"
    made = [Server(BUILDING, service=service, redis_url=servers.redis_url, folder=servers.folder) for _ in range(2)]
    redis = Redis.from_url(servers.redis_url)

    def put(task_id: str, status: str) -> None:
        known = redis.hget(f"tasks-of:{service}", task_id)
        assert isinstance(known, bytes)
        redis.hset(f"tasks-of:{service}", task_id, json.dumps({**json.loads(known), "status": status}))

    with made[0] as one, made[1] as other:
        async with (
            httpx2.AsyncClient(base_url=one.url.removesuffix("/mcp"), trust_env=False) as first,
            httpx2.AsyncClient(base_url=other.url.removesuffix("/mcp"), trust_env=False) as second,
        ):
            here, there = Client(first), Client(second)
            tasks = [await here.begin() for _ in range(5)]
            assert wait_until(lambda: one.telemetry.total("otel_mcp.task.started") == 5), one.log()
            assert wait_until(lambda: (redis.hlen(f"otel_mcp:{service}:tasks")) == 5)
            one.kill()

            tasks.append(await there.begin())
            for _ in range(2):
                assert (await there.ask("tasks/get", taskId=tasks[0]))["status"] == "working"
                assert wait_until(lambda: other.telemetry.latest("otel_mcp.task.active", RUNNING) == 6)
            ledger = {tasks[0]: "completed", tasks[1]: "completed", tasks[2]: "failed", tasks[5]: "completed"}
            for task_id, status in ledger.items():
                put(task_id, status)
                for _ in range(3):
                    assert (await there.ask("tasks/get", taskId=task_id))["status"] == status
            await there.ask("tasks/cancel", taskId=tasks[3])
            ledger[tasks[3]] = "cancelled"
            assert wait_until(lambda: other.telemetry.latest("otel_mcp.task.active", RUNNING) == 1)
        other.stop()
        spans = {span.span_id: span for server in (one, other) for span in server.telemetry.spans()}

        for status, count in Counter(ledger.values()).items():
            measured = [
                server.telemetry.total("otel_mcp.task.duration", {**TOOL, STATUS: status}) for server in (one, other)
            ]
            assert measured == [0, count]
        assert sum(server.telemetry.total("otel_mcp.task.started") for server in (one, other)) == len(tasks)
        polls = [span for span in spans.values() if span.attributes.get("mcp.method.name") == "tasks/get"]
        assert len(polls) == 2 + 3 * 4
        # The first answer of the store about a task of another replica comes after the first poll.
        about = [span for span in polls if span.attributes[STATUS] == "working"][1]
        (link,) = about.links
        assert spans[link.span_id].attributes["otel_mcp.task.id"] == about.attributes["otel_mcp.task.id"]
        assert tasks[0] not in repr([span.attributes for span in spans.values()])
        assert not [key for key in redis.hkeys(f"otel_mcp:{service}:tasks") if key.decode() in tasks]  # pyright: ignore
