"""Servers that belong together: a cluster of three, and a master whose replica a sentinel promotes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis.crc import key_slot

from tests.support.stores import Server

SLOTS = 16_384


def _wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "the servers did not find each other"
        time.sleep(0.02)


class Cluster:
    """Three nodes, a third of the slots each."""

    def __init__(self) -> None:
        self.nodes = [
            Server(
                "valkey",
                "--cluster-enabled",
                "yes",
                "--cluster-require-full-coverage",
                "no",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--cluster-node-timeout",
                "1000",
            )
            for _ in range(3)
        ]
        clients = [node.client() for node in self.nodes]
        for number, client in enumerate(clients):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[number].port)
        _wait_for(lambda: all(self._knows_all(client) for client in clients))

    def wait(self) -> None:
        """Until all nodes serve, and know that the others do, after one of them has come back."""
        clients = [node.client() for node in self.nodes]
        _wait_for(lambda: all(self._is_whole(client) for client in clients))

    def _is_whole(self, client: Any) -> bool:
        info = client.execute_command("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and b"fail" not in client.execute_command("CLUSTER", "NODES")

    def _knows_all(self, client: Any) -> bool:
        info = client.execute_command("CLUSTER", "INFO")
        return b"cluster_state:ok" in info and len(client.execute_command("CLUSTER", "SLOTS")) == 3

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def owner(self, key: str) -> int:
        """The number of the node that serves `key`."""
        slot = key_slot(key.encode())
        for first, last, node, *_ in self.nodes[0].client().execute_command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return [node.port for node in self.nodes].index(node[1])
        raise AssertionError("nobody serves that slot")

    def close(self) -> None:
        for node in self.nodes:
            node.close()


class Sentinel:
    """A master, its replica, and a sentinel that watches them."""

    def __init__(self) -> None:
        self.master = Server("valkey", "--repl-diskless-sync-delay", "0")
        self.replica = Server("valkey", "--replicaof", "127.0.0.1", str(self.master.port))
        # Before the sentinel looks: it looks again after ten seconds only.
        _wait_for(lambda: "online" in str(self.master.client().execute_command("INFO", "replication")))
        with tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False) as file:
            file.write(
                f"sentinel monitor main 127.0.0.1 {self.master.port} 1\n"
                "sentinel down-after-milliseconds main 300\n"
                "sentinel failover-timeout main 1000\n"
            )
        self._file = Path(file.name)
        self.watcher = Server("valkey", config=self._file)
        _wait_for(lambda: bool(self.watcher.client().execute_command("SENTINEL", "REPLICAS", "main")))

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.watcher.port}/main/0"

    def close(self) -> None:
        for server in (self.watcher, self.replica, self.master):
            server.close()
        self._file.unlink()
