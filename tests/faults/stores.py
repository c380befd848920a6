"""The stores that are hurt, and how: each fault begins, lasts while the client goes on, and ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import RedisError

from tests.faults.link import Link
from tests.store.groups import Cluster, Sentinel
from tests.support.stores import Server

DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
PREFIX: Final = b"mcp_session:"


class Store:
    """One server. What a fault needs is done by its subclasses."""

    options: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.server = Server("valkey", *self.options)

    @property
    def url(self) -> str:
        return self.server.url

    def nodes(self) -> list[Server]:
        """Servers that hold documents."""
        return [self.server]

    def begin(self) -> None:
        """Hurt it."""

    def end(self) -> None:
        """Let it be well again."""

    def documents(self) -> dict[bytes, bytes]:
        """Every session document there is."""
        found: dict[bytes, bytes] = {}
        for node in self.nodes():
            with node.client() as client:
                for key in client.scan_iter(PREFIX + b"*", count=1000):
                    if client.type(key) == b"string":
                        found[key] = client.get(key)
        return found

    def client(self) -> Any:
        return self.server.client()

    def close(self) -> None:
        self.server.close()


class Killed(Store):
    """kill -9, and back without data."""

    def begin(self) -> None:
        self.server.kill()

    def end(self) -> None:
        self.server.start()


class KilledDurable(Killed):
    options = DURABLE


class Absent(Killed):
    """Not there when the servers start."""

    def __init__(self) -> None:
        super().__init__()
        self.server.kill()

    def begin(self) -> None:
        pass


class RestartedEmpty(Store):
    def begin(self) -> None:
        self.server.kill()
        self.server.start()


class RestartedWithData(RestartedEmpty):
    options = DURABLE


class Hung(Store):
    def begin(self) -> None:
        self.server.hang()

    def end(self) -> None:
        self.server.resume()


class Full(Store):
    def begin(self) -> None:
        self.client().config_set("maxmemory", 1)

    def end(self) -> None:
        self.client().config_set("maxmemory", 0)


class ReadOnly(Store):
    def begin(self) -> None:
        self.client().execute_command("REPLICAOF", "127.0.0.1", "1")

    def end(self) -> None:
        self.client().execute_command("REPLICAOF", "NO", "ONE")


class Loading(Store):
    """It comes back with so much data that reading it takes seconds."""

    options = (*DURABLE, "--key-load-delay", "0", "--loading-process-events-interval-bytes", "1024")

    def begin(self) -> None:
        client = self.client()
        if not client.exists("filler:0"):
            with client.pipeline(transaction=False) as pipeline:
                for number in range(2000):
                    pipeline.set(f"filler:{number}", "x" * 100)
                pipeline.execute()
        self.server.kill()
        self._slow = threading.Thread(target=self.server.start)
        self.server._options = (  # pyright: ignore[reportPrivateUsage]
            *DURABLE,
            "--key-load-delay",
            "1000",
            "--loading-process-events-interval-bytes",
            "1024",
        )
        self._slow.start()

    def end(self) -> None:
        self._slow.join()
        self.client().config_set("key-load-delay", 0)


class Misconfigured(Store):
    """It cannot save, and therefore takes no writes."""

    options = ("--save", "3600 1", "--appendonly", "no", "--stop-writes-on-bgsave-error", "yes")

    def _target(self) -> Path:
        return Path(self.client().config_get("dir")["dir"]) / "dump.rdb"

    def begin(self) -> None:
        target, client = self._target(), self.client()
        target.unlink(missing_ok=True)
        target.mkdir()
        (target / "in the way").touch()
        client.bgsave()
        until = time.monotonic() + 5
        while client.info("persistence")["rdb_last_bgsave_status"] != "err":
            assert time.monotonic() < until, "the save did not fail"
            time.sleep(0.02)

    def end(self) -> None:
        target = self._target()
        (target / "in the way").unlink()
        target.rmdir()
        self.client().bgsave()


class Forgetful(Store):
    """It forgets the scripts, again and again."""

    def begin(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._flush)
        self._thread.start()

    def _flush(self) -> None:
        client = self.client()
        while not self._stop.wait(0.3):
            client.script_flush()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


class WrongPassword(Store):
    """The password changes, and changes back."""

    options = ("--requirepass", "first")

    @property
    def url(self) -> str:
        return f"redis://:first@127.0.0.1:{self.server.port}"

    def client(self) -> Any:
        for password in ("first", "second"):
            try:
                client = self.server.client(password=password)
                client.ping()
            except RedisError:
                continue
            return client
        raise AssertionError("no password fits")

    def documents(self) -> dict[bytes, bytes]:
        client = self.client()
        return {key: client.get(key) for key in client.scan_iter(PREFIX + b"*", count=1000)}

    def begin(self) -> None:
        self._change("second")

    def end(self) -> None:
        self._change("first")

    def _change(self, password: str) -> None:
        client = self.client()
        client.config_set("requirepass", password)
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


class Forbidding(Store):
    def begin(self) -> None:
        self.client().execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval")

    def end(self) -> None:
        self.client().execute_command("ACL", "SETUSER", "default", "+@all")


class Foreign(Store):
    """Somebody else writes under the keys of two live sessions: no JSON, and no string at all."""

    def begin(self) -> None:
        client = self.client()
        steady = [key for key, text in self.documents().items() if b'"client_name":"steady"' in text]
        self.overwritten = steady[:2]
        client.set(self.overwritten[0], "not json {")
        client.delete(self.overwritten[1])
        client.lpush(self.overwritten[1], "somebody else's")

    def end(self) -> None:
        client = self.client()
        assert client.get(self.overwritten[0]) == b"not json {", "a foreign value was touched"
        assert client.lrange(self.overwritten[1], 0, -1) == [b"somebody else's"], "a foreign value was touched"
        client.delete(*self.overwritten)


class Slow(Store):
    """200 ms there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.link = Link(self.server.port)

    @property
    def url(self) -> str:
        return self.link.url

    def begin(self) -> None:
        self.link.delay = 0.1

    def end(self) -> None:
        self.link.delay = 0.0

    def close(self) -> None:
        self.link.close()
        super().close()


class FailedOver(Store):
    """The master dies, and a sentinel promotes its replica."""

    def __init__(self) -> None:
        self.group = Sentinel()

    @property
    def url(self) -> str:
        return self.group.url

    def nodes(self) -> list[Server]:
        return [self.group.replica]

    def begin(self) -> None:
        self.group.master.kill()

    def close(self) -> None:
        self.group.close()


class Moving(Store):
    """A cluster in which the slots of live sessions move to another node, one of their two keys before the other."""

    def __init__(self) -> None:
        self.group = Cluster()

    @property
    def url(self) -> str:
        return self.group.url

    def nodes(self) -> list[Server]:
        return self.group.nodes

    def begin(self) -> None:
        steady = [key for key, text in self.documents().items() if b'"client_name":"steady"' in text]
        moves = [_Move(self.group, key.decode()) for key in steady]
        assert moves, "no live session to move"
        for move in moves:
            move.halfway()
        # Longer than it takes until the next flush: meanwhile neither node can write these sessions.
        time.sleep(1.5)
        refused = sum(_refused(node) for node in self.group.nodes)
        for move in moves:
            move.complete()
        assert refused, "nobody has met a slot that moves"

    def close(self) -> None:
        self.group.close()


class _Move:
    """One slot on its way to the next node."""

    def __init__(self, group: Cluster, key: str) -> None:
        self._slot = key_slot(key.encode())
        self._nodes = [node.client() for node in group.nodes]
        self._from = group.owner(key)
        self._to = (self._from + 1) % len(self._nodes)
        self._port = group.nodes[self._to].port

    def _id(self, number: int) -> str:
        return self._nodes[number].execute_command("CLUSTER", "MYID").decode()

    def _migrate(self, keys: list[bytes]) -> None:
        for key in keys:
            self._nodes[self._from].execute_command("MIGRATE", "127.0.0.1", self._port, key, 0, 1000)

    def _keys(self) -> list[bytes]:
        return self._nodes[self._from].execute_command("CLUSTER", "GETKEYSINSLOT", self._slot, 100)

    def halfway(self) -> None:
        self._nodes[self._to].execute_command("CLUSTER", "SETSLOT", self._slot, "IMPORTING", self._id(self._from))
        self._nodes[self._from].execute_command("CLUSTER", "SETSLOT", self._slot, "MIGRATING", self._id(self._to))
        self._migrate(self._keys()[:1])

    def complete(self) -> None:
        self._migrate(self._keys())
        for node in self._nodes:
            node.execute_command("CLUSTER", "SETSLOT", self._slot, "NODE", self._id(self._to))


def _refused(node: Server) -> int:
    """Commands that found the keys of a slot on two nodes."""
    return int(node.client().info("errorstats").get("errorstat_TRYAGAIN", {}).get("count", 0))


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of the table."""

    name: str
    store: Callable[[], Store]
    outages: int | None = 1
    """Warnings and recoveries to expect; `None` = up to one each."""
    loses: bool = False
    """The store itself forgets what it had."""
    drops: bool = False
    fresh: bool = False
    """New store and servers for every run."""
    absent: bool = False
    """The store is not there before the first run."""
    quick: bool = True
    """Part of the short form."""
    recovers_within: float = 10.0
    """Seconds after the end of the fault until everything is written."""


FAULTS: Final = (
    Fault("none", Store, outages=0),
    Fault("not there at start", Absent, fresh=True, absent=True),
    Fault("kill -9, back with its data", KilledDurable),
    Fault("kill -9, back empty", Killed, loses=True, quick=False),
    Fault("hangs (SIGSTOP)", Hung),
    Fault("restarts empty", RestartedEmpty, outages=None, loses=True, quick=False),
    Fault("restarts with its data", RestartedWithData, outages=None, quick=False),
    Fault("OOM (noeviction)", Full),
    Fault("READONLY", ReadOnly),
    Fault("LOADING", Loading),
    Fault("MISCONF", Misconfigured),
    Fault("NOSCRIPT", Forgetful, outages=0),
    Fault("wrong password", WrongPassword, quick=False, recovers_within=45.0),
    Fault("ACL forbids a command", Forbidding, quick=False, recovers_within=45.0),
    Fault("foreign values under our keys", Foreign, outages=0, drops=True),
    Fault("slow link (200 ms)", Slow, outages=0),
    Fault("failover by Sentinel", FailedOver, loses=True, fresh=True, quick=False),
    Fault("cluster, slots moving", Moving, outages=None, fresh=True, quick=False),
)
