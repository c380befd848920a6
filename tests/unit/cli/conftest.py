"""A Redis of its own for each test, and the command line run in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from redis import Redis

from otel_mcp import settings
from otel_mcp.cli.app import run

NOW = float(int(time.time()))
"""Unix seconds at which all that these tests look at is looked at."""


class Result(NamedTuple):
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """Standard output as rows of tab-separated values."""
        return [line.split("\t") for line in self.out.splitlines()]


Cli = Callable[..., Result]


@pytest.fixture
def redis_url(valkey_url: str) -> Iterator[str]:
    """A database that is empty."""
    url = f"{valkey_url}/9"
    with Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def redis(redis_url: str) -> Iterator[Any]:
    """A client of it."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def cli(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line; `columns`: on a terminal so wide, else in a pipe."""

    def invoke(*arguments: str, columns: int | None = None, at: float = NOW, **environment: str) -> Result:
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: at)
            patch.delenv("NO_COLOR", raising=False)
            patch.delenv("COLUMNS", raising=False)
            patch.setenv("TERM", "xterm")
            patch.setenv("OTEL_SERVICE_NAME", "shop")
            patch.setenv("OTEL_PYTHON_MCP_REDIS_URL", redis_url)
            for name, value in environment.items():
                patch.setenv(name, value)
            if columns is not None:
                patch.setenv("COLUMNS", str(columns))
                patch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
            settings._service_name.cache_clear()  # pyright: ignore[reportPrivateUsage]
            code = run(arguments)
        settings._service_name.cache_clear()  # pyright: ignore[reportPrivateUsage]
        written = capsys.readouterr()
        return Result(code, written.out, written.err)

    return invoke
