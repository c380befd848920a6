"""What goes wrong: one line on standard error with advice, an exit code, and never a password."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.stores import Server
from tests.unit.cli.conftest import NOW, Cli
from tests.unit.cli.stories import call, session, shop, write

COMMANDS = (["sessions"], ["sessions", "--watch"], ["show", "x"], ["tools"], ["tail"], ["rm", "x", "--yes"])


@pytest.mark.parametrize("command", COMMANDS)
def test_unreachable_redis_is_one_line_that_says_what_to_do(command: list[str], cli: Cli) -> None:
    result = cli(*command, "--redis-url", "redis://user:SECRET@127.0.0.1:1/3?client_name=SECRET")

    assert result == (
        3,
        "",
        "otel-mcp: Redis at 127.0.0.1:1 cannot be used (ConnectionError)\n"
        "  is it running, and does OTEL_PYTHON_MCP_REDIS_URL name it?\n",
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_password_is_another_line(command: list[str], cli: Cli, redis: Any, redis_url: str) -> None:
    redis.execute_command("ACL", "SETUSER", "somebody", "on", ">right", "~*", "+@all")

    result = cli(*command, "--redis-url", redis_url.replace("//", "//somebody:SECRET@"))

    redis.execute_command("ACL", "DELUSER", "somebody")
    assert (result.code, result.out) == (3, "")
    assert "denies access" in result.err
    assert "SECRET" not in result.err


@pytest.mark.parametrize(
    "url", ["http://u:SECRET@h", "redis://:SECRET@[", "redis+sentinel://u:SECRET@/x", "redis://h:SECRET", "x"]
)
def test_unusable_url_is_a_usage_error_without_its_text(url: str, cli: Cli) -> None:
    result = cli("sessions", "--redis-url", url)

    assert (result.code, result.out) == (2, "")
    assert "SECRET" not in result.err
    assert "redis://" in result.err


def test_no_redis_at_all_is_a_usage_error(cli: Cli) -> None:
    result = cli("sessions", OTEL_PYTHON_MCP_REDIS_URL="")

    assert (result.code, result.out) == (2, "")
    assert "OTEL_PYTHON_MCP_REDIS_URL" in result.err


@pytest.mark.parametrize("span", ["soon", "-5m", "1w", "nan", "m", "1e99d"])
def test_what_is_no_span_of_time_is_a_usage_error(span: str, cli: Cli) -> None:
    assert cli("sessions", "--since", span).code == 2


def test_settings_show_no_secret(cli: Cli) -> None:
    result = cli("settings", OTEL_PYTHON_MCP_HASH_KEY="SECRET", OTEL_PYTHON_MCP_REDIS_URL="redis://:SECRET@h")

    assert "SECRET" not in result.out
    assert ["OTEL_PYTHON_MCP_REDIS_URL", "(set)"] in result.rows
    assert ["OTEL_PYTHON_MCP_SESSION_TTL", "3600"] in result.rows
    assert ["OTEL_PYTHON_MCP_SESSION_SOURCES", "conversation,header,inferred"] in result.rows
    assert ["OTEL_PYTHON_MCP_LOG_CALLS", "false"] in result.rows
    assert ["OTEL_PYTHON_MCP_JAEGER_URL", "-"] in result.rows


def test_unexpected_error_is_one_line_without_its_text(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("SECRET")

    monkeypatch.setattr("otel_mcp.cli.listing.sessions", broken)

    result = cli("sessions")

    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("otel-mcp: ValueError in test_troubles.py:")
    assert "SECRET" not in result.err


PROCESSES: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    while PROCESSES:
        process = PROCESSES.pop()
        process.kill()
        process.wait()


def started(redis_url: str, *command: str, **pipes: Any) -> subprocess.Popen[str]:
    """The command line as a process of its own."""
    environment = {**os.environ, "OTEL_PYTHON_MCP_REDIS_URL": redis_url, "OTEL_SERVICE_NAME": "shop"}
    # Where the tests run in the background, interrupts are ignored, and children inherit that.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from otel_mcp.cli import main; main()"
    )
    command = (sys.executable, "-c", script, *command)
    PROCESSES.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **pipes))
    return PROCESSES[-1]


def test_a_reader_that_goes_away_is_no_error(redis_url: str) -> None:
    calls = [call("find_orders_with_a_long_name", NOW - 50 + at / 100) for at in range(40)]
    write(redis_url, [session(f"s{number:04}", calls, began=NOW - 60) for number in range(60)])

    lister = started(redis_url, "tail", "--since", "1h", stdout=subprocess.PIPE)
    assert lister.stdout is not None
    assert lister.stdout.readline() != ""
    lister.stdout.close()
    write(redis_url, [session(f"t{number:04}", calls, began=NOW - 60) for number in range(60)])

    assert lister.wait(60) == 0
    assert lister.stderr is not None
    assert lister.stderr.read() == ""
    lister.stderr.close()


def test_an_interrupt_ends_with_its_own_code_and_no_traceback(redis_url: str) -> None:
    write(redis_url, shop(NOW))
    tail = started(redis_url, "tail", "--since", "1h", stdout=subprocess.PIPE)
    assert tail.stdout is not None
    assert tail.stdout.readline() != ""

    tail.send_signal(signal.SIGINT)

    assert tail.wait(60) == 130
    _, err = tail.communicate()
    assert err == ""


def test_tail_survives_a_restart_of_redis() -> None:
    server = Server("valkey")
    try:
        write(server.url, [session("before", [call("one", NOW)], began=NOW)])
        tail = started(server.url, "tail", "--since", "1h", "-n", "2", stdout=subprocess.PIPE)
        assert tail.stdout is not None
        assert tail.stderr is not None
        assert "\tbefore\t" in tail.stdout.readline()

        server.kill()
        assert "waiting for it" in tail.stderr.readline()
        server.start()
        now = time.time()  # A replica may be a minute late, and this file may take longer.
        write(server.url, [session("after", [call("two", now)], began=now)])

        out, err = tail.communicate(timeout=60)
        assert "\tafter\t" in out
        assert err == "otel-mcp: Redis is back\n"
        assert tail.returncode == 0
    finally:
        server.close()
