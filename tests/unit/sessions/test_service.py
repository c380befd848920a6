"""The end of a process, forks and loops that come and go, with a real server."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_mcp import loops
from otel_mcp.model.state import SessionState
from otel_mcp.sessions.service import Sessions
from tests.support.stores import Listener, Server, delta, facts, settings

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(running: Server) -> Server:
    running.client().flushall()
    return running


def counts(server: Server) -> dict[str, int]:
    with server.client() as client:
        states = [SessionState.model_validate_json(client.get(key)) for key in client.keys("mcp_session:*")]
    return {state.session_id: state.tool_call_count for state in states}


def run(script: str, *args: str) -> str:
    """Run a program to its end; what it wrote to standard error."""
    prelude = """
        import asyncio, atexit, gc, os, sys, time
        from otel_mcp.sessions.service import Sessions
        from otel_mcp.model.delta import CallRecord, SessionDelta, SessionFacts
        from otel_mcp.settings import Settings

        class Silent:
            def written(self, delta, result): pass
            def ended(self, session): pass
            def dropped(self, count, reason): print("dropped", count, reason, file=sys.stderr)
            def store_operation(self, operation, outcome, seconds): pass
            def hash_key(self, key): pass
            def listed(self): return []
            def closing(self): pass
            def in_flight(self): return []
            def tasks_counted(self, census): pass
            def tasks_abandoned(self): pass

        def call(session_id, calls=1):
            now = time.time()
            records = [CallRecord("add", number, now, 0.1) for number in range(calls)]
            facts = SessionFacts(session_id, now, 3600.0)
            return SessionDelta(facts, now, requests=calls, call_count=calls, calls=records)

        settings = Settings.model_validate({"redis_url": sys.argv[1], "flush_interval": 3600.0})
        sessions = Sessions(settings, Silent())
        atexit.register(sessions.flush_at_exit)
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_program_without_a_loop_writes_at_exit(server: Server) -> None:
    # By name: resolving it must not need a thread, which no longer starts at that time.
    logged = run("sessions.submit(call('abc', 3))", f"redis://localhost:{server.port}")

    assert (counts(server), logged) == ({"abc": 3}, "")


def test_a_loop_that_ends_writes_before_it_goes(server: Server) -> None:
    script = """
        async def main():
            sessions.ensure_running()
            sessions.submit(call('abc', 3))
            await asyncio.sleep(0)
        asyncio.run(main())
        assert sessions.pending == 0
    """
    assert (run(script, server.url), counts(server)) == ("", {"abc": 3})


def test_a_loop_that_is_stopped_and_left_writes_at_exit(server: Server) -> None:
    script = """
        async def main():
            sessions.ensure_running()
            await sessions.describe('abc')
            sessions.submit(call('abc', 3))
        asyncio.new_event_loop().run_until_complete(main())
    """
    run(script, server.url)

    assert counts(server) == {"abc": 3}


def test_an_exit_without_the_server_is_short_and_logs_the_loss() -> None:
    logged = run("sessions.submit(call('abc', 3))", "redis://127.0.0.1:1")

    assert "dropped 3 shutdown" in logged
    assert "Traceback" not in logged


def test_an_exit_with_a_server_that_hangs_is_bounded() -> None:
    server = Server()
    server.hang()
    try:
        logged = run("sessions.submit(call('abc', 3))", server.url)
    finally:
        server.close()

    assert "dropped 3 shutdown" in logged


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_leaves_the_parents_calls_and_connections_alone(server: Server) -> None:
    script = """
        async def child():
            sessions.ensure_running()
            sessions.submit(call('child', 2))
            await sessions.flush()
            assert (await sessions.load('child')).tool_call_count == 2
            gc.collect()

        async def parent():
            sessions.ensure_running()
            sessions.submit(call('parent', 1))
            await sessions.flush()
            sessions.submit(call('parent', 5))
            token = sessions._producer.token
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    assert sessions.pending == 0 and sessions._producer.token != token
                    asyncio.run(child())
                    sessions.flush_at_exit()
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(pid, 0)[1] == 0
            assert (await sessions.load('parent')).tool_call_count == 6
            sessions.submit(call('parent', 1))
        asyncio.run(parent())
    """
    run(script, server.url)

    assert counts(server) == {"parent": 7, "child": 2}


def test_a_process_that_forks_before_it_serves_works_in_each_child(server: Server) -> None:
    script = """
        async def serve(name):
            sessions.ensure_running()
            sessions.submit(call(name, 4))
            sessions.submit(call('shared', 1))
            await asyncio.sleep(0)

        children = []
        for number in range(3):
            pid = os.fork()
            if pid == 0:
                asyncio.run(serve(f's{number}'))
                os._exit(0)
            children.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    """
    assert (run(script, server.url), counts(server)) == ("", {"s0": 4, "s1": 4, "s2": 4, "shared": 3})


def test_loops_that_come_and_go_leave_no_connection_behind(server: Server) -> None:
    sessions = Sessions(settings(server.url, flush_interval=3600.0), Listener())

    async def serve() -> None:
        sessions.ensure_running()
        now = time.time()
        sessions.submit(delta(1, of=facts(at=now), at=now))
        await asyncio.gather(*(sessions.describe(f"s{number}") for number in range(20)))

    for _ in range(2):
        asyncio.run(serve())
    with server.client() as client:
        assert len(client.client_list()) == 1
    for _ in range(3):  # From now on there is one loop that lasts.
        asyncio.run(serve())
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    for _ in range(10):
        asyncio.run(serve())
    gc.collect()

    # Each loop would leave one at least; what is not of ours comes and goes.
    assert len(os.listdir("/dev/fd")) < before + 10
    asyncio.run(loops.at_home(sessions.aclose))
    loops.stop()
    assert counts(server) == {"abc": 15}
    with server.client() as client:
        assert len(client.client_list()) == 1
