"""``otel-mcp doctor``: find out what keeps telemetry of an MCP server from arriving, and how to fix it.

All checks run, those that wait concurrently; findings are reported in the order of `ORDER`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Final

from otel_mcp.cli.doctor import endpoint, exporters, server, traffic
from otel_mcp.cli.doctor.inspection import Inspection, Inventory, Loaded
from otel_mcp.cli.doctor.launch import Launch, read
from otel_mcp.cli.doctor.report import Finding, Findings, as_json, as_lines, count, guarded, judge, skip
from otel_mcp.cli.document import Document
from otel_mcp.cli.terminal import Code, Failure, Terminal
from otel_mcp.store.base import StoreDown

SECONDS: Final = 8.0
"""Timeout of the app's import, and of each other check that waits."""
ORDER: Final = (
    "package", "versions", "sdk", "disabled", "start", "siblings", "seams", "exporters", "endpoint", "settings",
    "redis", "permissions", "memory", "hash-key", "sessions", "proxy",
)  # fmt: skip
"""Checks, in the order of the report."""
_MAX_DOCUMENTS: Final = 200
"""Newest sessions that are read."""


async def diagnose(
    command: Sequence[str], env: Mapping[str, str], *, redis_url: str | None = None, seconds: float = SECONDS
) -> list[Finding]:
    """Run all checks on a server that `command` starts in `env`."""
    launch = read(command, env)
    parts = await asyncio.gather(_server(launch, seconds), _store(launch, redis_url))
    return sorted((finding for part in parts for finding in part), key=lambda finding: ORDER.index(finding.check))


async def _server(launch: Launch, seconds: float) -> list[Finding]:
    """Check the server's Python environment, and the endpoints that it exports to."""
    found = [*judge("sdk", server.sdk, launch.env), *judge("disabled", server.disabled, launch.env)]
    inventory: Inventory | None = None
    loaded: Loaded | None = None
    names = server.disabled_names(launch.env)
    deadline = asyncio.get_running_loop().time() + seconds
    try:
        async with Inspection(launch) as inspection:
            inventory = await inspection.inventory(seconds)
            found += judge("package", server.package, inventory, launch)
            found += judge("versions", server.versions, inventory)
            exporting = exporters.read(launch.env, inventory)
            found += judge("exporters", lambda: exporting.findings)
            asked = asyncio.create_task(guarded("endpoint", endpoint.check(exporting.targets), SECONDS))
            if server.OURS in inventory.distributions:
                left = max(deadline - asyncio.get_running_loop().time(), 0.1)
                loaded = await inspection.load(exporting.wanted, names, left)
            found += await asked
    except (OSError, RuntimeError) as error:
        where = launch.interpreter or "the interpreter"
        unknown = skip(f"{where} could not be inspected: {error}")
        found += judge("package", lambda: [unknown])
    found += judge("start", server.start, launch, loaded)
    if inventory is not None and loaded is not None:
        is_loaded = (launch.initialises or not launch.given or launch.app is None) and not names & {"otel_mcp", "*"}
        found += judge("siblings", server.siblings, loaded, inventory, names)
        found += judge("exporters", exporters.constructed, loaded)
        found += judge("seams", server.seams, loaded, inventory, launch, is_loaded=is_loaded)
    return found


async def _store(launch: Launch, redis_url: str | None) -> list[Finding]:
    """Check our settings, Redis, and the sessions in it."""
    # Imported here because it takes long, and the child process has started by now.
    from otel_mcp.cli.doctor import redis
    from otel_mcp.cli.store import Reader

    settings, warnings = traffic.read(launch.env, redis_url)
    documents: list[Document] | None = None
    found = await guarded("redis", redis.check(settings), SECONDS)

    async def newest() -> Findings:
        nonlocal documents
        reader = Reader(settings)
        try:
            members, _ = await reader.index(_MAX_DOCUMENTS)
            documents = await reader.documents(member.session_id for member in members)
        except StoreDown as down:
            if not down.denied:
                raise
            return [skip(f"this user may not read the index of sessions ({down.reason})")]
        finally:
            await reader.aclose()
        return traffic.sessions(documents)

    if settings.redis_url is not None and all(one.status in {"ok", "warn"} for one in found if one.check == "redis"):
        found += await guarded("sessions", newest(), SECONDS)
    found += judge("settings", traffic.settings, launch.env, settings, warnings)
    found += judge("hash-key", traffic.hash_key, settings, launch)
    return found + judge("proxy", traffic.proxy, settings, launch, documents)


def examine(
    terminal: Terminal, command: Sequence[str], redis_url: str | None, seconds: float, *, is_json: bool, is_strict: bool
) -> None:
    """Run all checks and report.

    Raises:
        Failure: a check failed, or warned with `is_strict`.
    """
    findings = asyncio.run(diagnose(command, os.environ, redis_url=redis_url, seconds=seconds))
    if is_json:
        terminal.data(as_json(findings))
        terminal.flush()
    else:
        as_lines(terminal, findings)
    if count(findings, "FAIL") or (is_strict and count(findings, "warn")):
        raise Failure(Code.NOT_FOUND)
