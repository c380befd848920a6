"""A server whose tasks outlive it: what becomes of them is in Redis, where the test writes it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import MCPServer
from redis import Redis

sys.path.append(str(Path(__file__).parents[4]))
from tests.support.sdk_tasks import TasksExtension
from tests.support.tasks import TaskServer


class Shared(dict[str, Any]):
    """The tasks of all replicas."""

    def __init__(self) -> None:
        super().__init__()
        self._redis = Redis.from_url(os.environ["OTEL_PYTHON_MCP_REDIS_URL"])
        self._key = f"tasks-of:{os.environ['OTEL_SERVICE_NAME']}"

    def __len__(self) -> int:
        return int(self._redis.hlen(self._key))  # pyright: ignore[reportArgumentType]

    def __setitem__(self, task_id: str, task: Any) -> None:
        self._redis.hset(self._key, task_id, json.dumps(task))

    def __getitem__(self, task_id: str) -> Any:
        return json.loads(self._redis.hget(self._key, task_id))  # pyright: ignore[reportArgumentType]


mcp = MCPServer("shop", version="1.0", log_level="WARNING", extensions=[TasksExtension(TaskServer(Shared()))])


@mcp.tool()
def build() -> str:
    """Build it, which takes long: the extension makes a task of it."""
    raise NotImplementedError


app = mcp.streamable_http_app(stateless_http=True, json_response=True)
