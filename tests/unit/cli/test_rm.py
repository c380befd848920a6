"""``otel-mcp rm``: one session ends for all replicas, asked for on a terminal, by an option in scripts."""

from __future__ import annotations

import asyncio
import io
import sys
import time
from typing import Any

import pytest

from otel_mcp.model.delta import EndedSession
from otel_mcp.settings import Settings
from otel_mcp.store.redis.store import RedisStore
from tests.unit.cli.conftest import NOW, Cli
from tests.unit.cli.stories import session, shop, write


@pytest.fixture(autouse=True)
def _sessions(redis_url: str) -> None:
    write(redis_url, shop(NOW))


def reported(url: str) -> list[EndedSession]:
    """What a replica reports with its next sweep."""

    async def sweep() -> list[EndedSession]:
        store = RedisStore(Settings.model_validate({"redis_url": url, "service_name": "shop"}))
        ends = await store.claim_expired(time.time(), 10)
        await store.ack_ends(ends)
        await store.aclose()
        return ends

    return asyncio.run(sweep())


def test_in_scripts_it_ends_the_session_and_a_replica_reports_it(cli: Cli, redis: Any, redis_url: str) -> None:
    result = cli("rm", "om1.", "--yes")

    assert result == (0, "om1.uUrTOZUz\n", "ended; a replica reports the end with its next sweep\n")
    assert not redis.exists("mcp_session:om1.uUrTOZUz")
    assert "om1.uUrTOZUz" not in cli("sessions", "-o", "name").out.split()
    assert [(end.session_id, end.reason) for end in reported(redis_url)] == [("om1.uUrTOZUz", "server_closed")]
    assert cli("rm", "om1.uUrTOZUz", "--yes").code == 1


def test_without_yes_and_without_a_terminal_it_does_nothing(cli: Cli, redis: Any) -> None:
    result = cli("rm", "c_7f3ab2")

    assert (result.code, result.out) == (2, "")
    assert "--yes" in result.err
    assert redis.exists("mcp_session:c_7f3ab2")


class Keyboard(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "code", "is_left"), [("y\n", 0, 0), ("n\n", 1, 1), ("\n", 1, 1)])
def test_on_a_terminal_it_asks(
    answer: str, code: int, is_left: int, cli: Cli, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(answer))

    result = cli("rm", "c_7f3ab2")

    assert result.code == code
    assert "End session c_7f3ab2 (claude-code 2.1.266, 10 calls)? [y/N]" in result.err
    assert redis.exists("mcp_session:c_7f3ab2") == is_left


def test_an_ambiguous_or_unknown_id_ends_nothing(cli: Cli, redis_url: str, redis: Any) -> None:
    write(redis_url, [session(f"twin-{letter}", [], began=NOW - 9) for letter in "ab"])

    assert cli("rm", "twin", "--yes").code == 1
    assert cli("rm", "nosuch", "--yes").code == 1
    assert redis.exists("mcp_session:twin-a", "mcp_session:twin-b") == 2


def test_a_session_of_another_service_ends_as_one_of_that(cli: Cli, redis_url: str, redis: Any) -> None:
    write(redis_url, [session("elsewhere", [], began=NOW - 9)], "bank")

    assert cli("rm", "elsewhere", "--yes").code == 0
    assert not redis.exists("mcp_session:elsewhere")
    assert redis.zscore("otel_mcp:bank:deadlines", "elsewhere") < 0
