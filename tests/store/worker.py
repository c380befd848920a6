"""A process that serves sessions, for the tests that start several and hurt some.

``python -m tests.store.worker URL SETTINGS [FILE]`` reads JSON commands from
standard input, one a line, and answers each with a line of JSON. Ends go to
the file at once, so that it holds what a killed process had reported.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

from otel_mcp.model.delta import CallRecord, EndedSession, OpenCall, SessionDelta, SessionFacts, WriteResult
from otel_mcp.model.session import Interruption
from otel_mcp.model.state import SessionState
from otel_mcp.model.task import Followed, TaskCensus, TaskNews
from otel_mcp.model.verdict import Finding
from otel_mcp.sessions.service import Sessions
from otel_mcp.settings import Settings

_AT_ONCE = 10
"""Calls under way at any time."""


class Worker:
    """Runs commands and hears the events of its sessions."""

    def __init__(self, url: str, values: dict[str, Any], ends: str) -> None:
        given = {"redis_url": url, "service_name": "svc", "flush_interval": 0.05, **values}
        self.sessions = Sessions(Settings.model_validate(given), self)
        self._ends = os.open(ends, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._calls = self._dropped = 0
        self._started: list[str] = []
        self._resumed: list[str] = []
        self._catalogues: list[str] = []
        self._changes: list[str] = []

    def written(self, delta: SessionDelta, result: WriteResult) -> None:
        if result.created:
            self._started.append(result.session_id)
        if result.resumed:
            self._resumed.append(result.session_id)

    def ended(self, session: EndedSession) -> None:
        os.write(self._ends, f"{session.session_id} {session.reason} {session.tool_call_count}\n".encode())

    def interrupted(self, cut: Interruption) -> None:
        pass

    def returned(self, facts: SessionFacts, after: float) -> None:
        pass

    def found(self, finding: Finding, state: SessionState) -> None:
        pass

    def dropped(self, count: int, reason: str) -> None:
        self._dropped += count

    def store_operation(self, operation: str, outcome: str, seconds: float) -> None:
        pass

    def listed(self) -> list[tuple[str, str]]:
        return [(digest, digest) for digest in self._catalogues]

    def met(self, digest: str, summary: str, others: list[str]) -> None:
        self._catalogues.remove(digest)
        self._changes += [f"{other} to {digest}" for other in others[:1]]

    def tasks_seen(self, most: int) -> tuple[TaskNews, ...]:
        return ()

    def tasks_followed(self, answer: Followed) -> None:
        pass

    def tasks_abandoned(self) -> None:
        pass

    def tasks_counted(self, census: TaskCensus | None) -> None:
        pass

    async def list(self, catalogue: str) -> None:
        """Have clients list this one, until the store knows of it."""
        self._catalogues.append(catalogue)
        self.sessions.worker.listed()
        while self._catalogues:  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)

    def hash_key(self, key: bytes) -> None:
        pass

    def closing(self) -> None:
        pass

    def in_flight(self) -> list[OpenCall]:
        return []

    async def call(self, sessions: int, calls: int, seconds: float, limit: float = 3600.0) -> None:
        """Finish `calls` calls over `sessions` sessions in about `seconds`, ten at once."""
        begun = time.time()
        known = [SessionFacts(f"s{number}", begun, limit, source="header") for number in range(sessions)]
        numbers = iter(range(calls))

        async def caller() -> None:
            for number in numbers:
                self.sessions.ensure_running()
                started = time.time()
                await asyncio.sleep(seconds * _AT_ONCE / calls)
                now = time.time()
                record = CallRecord("add", number, started, now - started)
                of = known[number % sessions]
                self.sessions.submit(SessionDelta(of, now, requests=1, call_count=1, calls=[record]))
                self._calls += 1

        await asyncio.gather(*(caller() for _ in range(_AT_ONCE)))

    async def settled(self) -> None:
        """Wait until everything is written, or for a minute."""
        for _ in range(3000):
            if not self.sessions.pending and not self.sessions.degraded:
                return
            await asyncio.sleep(0.02)

    def report(self) -> dict[str, Any]:
        """What this process has seen so far."""
        return {
            "calls": self._calls,
            "dropped": self._dropped,
            "started": self._started,
            "resumed": self._resumed,
            "changes": self._changes,
            "pending": self.sessions.pending,
        }


async def main(url: str, values: str, ends: str = os.devnull) -> None:
    worker = Worker(url, json.loads(values), ends)
    worker.sessions.ensure_running()
    loop = asyncio.get_running_loop()
    print(json.dumps(worker.report()), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        name = command.pop("do")
        if name == "stop":
            break
        await getattr(worker, name)(**command)
        print(json.dumps(worker.report()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
