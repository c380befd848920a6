"""What other packages bring along: observers, and places where hosts put their conversation ids."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from otel_mcp import MCPMiddleware
from otel_mcp.identity.hosts import HOST_KEYS, HostKey, host_keys
from otel_mcp.observers import discover
from otel_mcp.settings import load
from tests.support.answers import Server
from tests.support.asgi import post
from tests.support.messages import MODERN_HEADERS, modern
from tests.support.providers import Telemetry
from tests.unit.conftest import MakeRuntime

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with one module and one entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, module in list(sys.modules.items()):
        if name.startswith("otel_mcp") and hasattr(module, "entry_points"):
            monkeypatch.setattr(module, "entry_points", metadata.entry_points)

    def made(group: str, value: str, source: str) -> None:
        (tmp_path / "plugin_of_a_user.py").write_text(source, encoding="utf-8")
        about = tmp_path / "plugin_of_a_user-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-a-user\nVersion: 1\n", encoding="utf-8")
        (about / "entry_points.txt").write_text(f"[{group}]\nmine = {value}\n", encoding="utf-8")
        importlib.invalidate_caches()

    yield made
    sys.modules.pop("plugin_of_a_user", None)


def test_an_observer_is_found_by_its_entry_point(install: Install) -> None:
    install("otel_mcp_observers", "plugin_of_a_user:observe", "async def observe(call, session): ...\n")

    found = discover(load())

    assert list(found) == ["mine"]
    assert found["mine"].__name__ == "observe"  # type: ignore[attr-defined]


def test_an_entry_point_that_cannot_be_loaded_is_left_out_and_counted(install: Install, failures: Any) -> None:
    install("otel_mcp_observers", "plugin_of_a_user:missing", "raise ImportError('secret')\n")

    assert list(discover(load(log_calls=True))) == ["log"]
    assert failures == {"observer mine": 1}


KEYS = """
from otel_mcp.identity.hosts import HostKey

KEYS = (HostKey("corp.example/run"), HostKey("run", clients=("corp",)))
"""


def test_host_keys_of_entry_points_come_before_ours(install: Install) -> None:
    install("otel_mcp_conversation_keys", "plugin_of_a_user:KEYS", KEYS)

    keys = host_keys(load(conversation_keys="configured"))

    assert keys == (
        HostKey("configured"),
        HostKey("corp.example/run"),
        HostKey("run", clients=("corp",)),
        *HOST_KEYS,
    )


def test_keys_that_cannot_be_loaded_take_none_of_ours_away(install: Install, failures: Any) -> None:
    install("otel_mcp_conversation_keys", "plugin_of_a_user:KEYS", "KEYS = 7\n")

    assert host_keys(load()) == HOST_KEYS
    assert failures == {"conversation keys mine": 1}


@pytest.mark.anyio
async def test_a_host_that_a_package_knows_is_a_conversation(
    install: Install, make_runtime: MakeRuntime, telemetry: Telemetry
) -> None:
    install("otel_mcp_conversation_keys", "plugin_of_a_user:KEYS", KEYS)

    await post(MCPMiddleware(Server(), make_runtime()), modern(**{"corp.example/run": "7"}), MODERN_HEADERS)

    attributes = telemetry.span().attributes or {}
    assert (attributes["otel_mcp.session.source"], attributes["gen_ai.conversation.id"]) == ("conversation", "7")
