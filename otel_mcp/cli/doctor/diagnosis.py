"""Run all checks, those that wait at the same time, and put what they found in the order in which to read it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from otel_mcp.cli.doctor import configuration, endpoint, exporters, instrumentation, packages
from otel_mcp.cli.doctor.finding import Finding, guarded, skip
from otel_mcp.cli.doctor.inspection import Inspection, Inventory, Loaded
from otel_mcp.cli.doctor.launch import Launch, read
from otel_mcp.settings import Settings

SECONDS: Final = 8.0
"""For importing the app, and for everything else besides."""
ORDER: Final = (
    "package", "versions", "sdk", "disabled", "start", "siblings", "seams", "exporters", "endpoint", "settings",
    "redis", "permissions", "memory", "hash-key", "sessions", "proxy",
)  # fmt: skip


@dataclass(slots=True)
class Diagnosis:
    """Everything that was found."""

    findings: list[Finding] = field(default_factory=list[Finding])

    def sorted(self) -> list[Finding]:
        """Return the findings in the order of the checks."""
        return sorted(self.findings, key=lambda finding: ORDER.index(finding.check))

    def count(self, status: str) -> int:
        """How many findings have this status."""
        return sum(finding.status == status for finding in self.findings)

    async def run(self, check: str, look: Callable[[], Iterable[Finding]]) -> None:
        """Run a check that waits for nothing."""

        async def looked() -> Iterable[Finding]:
            return look()

        self.findings += await guarded(check, looked(), SECONDS)


async def diagnose(
    command: Sequence[str], env: Mapping[str, str], *, redis_url: str | None = None, seconds: float = SECONDS
) -> Diagnosis:
    """Find out what keeps the telemetry of a server, started by `command` in `env`, from arriving."""
    diagnosis = Diagnosis()
    launch = read(command, env)
    await asyncio.gather(_server(diagnosis, launch, seconds), _store(diagnosis, launch, redis_url))
    return diagnosis


async def _server(diagnosis: Diagnosis, launch: Launch, seconds: float) -> None:
    """Look into the server's interpreter, and at where it would export to."""
    await diagnosis.run("sdk", lambda: instrumentation.switched_off(launch.env))
    await diagnosis.run("disabled", lambda: instrumentation.disabled(launch.env))
    inventory: Inventory | None = None
    loaded: Loaded | None = None
    until = asyncio.get_running_loop().time() + seconds
    try:
        async with Inspection(launch) as inspection:
            inventory = await inspection.inventory(seconds)
            exporting = exporters.Exporting()

            def look() -> list[Finding]:
                nonlocal exporting
                exporting = exporters.read(launch.env, inventory)
                return exporting.findings

            await diagnosis.run("exporters", look)
            await diagnosis.run("package", lambda: packages.installed(inventory, launch))
            await diagnosis.run("versions", lambda: packages.versions(inventory))
            asked = asyncio.create_task(guarded("endpoint", endpoint.check(exporting.targets), SECONDS))
            if packages.OURS in inventory.distributions:
                disabled = instrumentation.disabled_names(launch.env)
                left = max(until - asyncio.get_running_loop().time(), 0.1)
                loaded = await inspection.load(exporting.wanted, disabled, left)
            diagnosis.findings += await asked
    except (OSError, RuntimeError) as error:
        where = launch.interpreter or "the interpreter"
        diagnosis.findings.append(skip("package", f"{where} was not looked into: {error}"))
    await _dry_run(diagnosis, launch, inventory, loaded)


async def _dry_run(diagnosis: Diagnosis, launch: Launch, inventory: Inventory | None, loaded: Loaded | None) -> None:
    """Judge what became of the instrumentations and the app when they were loaded."""
    await diagnosis.run("start", lambda: instrumentation.started(launch, loaded))
    if inventory is None or loaded is None:
        return
    disabled = instrumentation.disabled_names(launch.env)
    is_loaded = (launch.initialises or not launch.given or launch.app is None) and not disabled & {"otel_mcp", "*"}
    await diagnosis.run("siblings", lambda: instrumentation.siblings(loaded, inventory, disabled))
    await diagnosis.run("exporters", lambda: exporters.constructed(loaded))
    await diagnosis.run("seams", lambda: instrumentation.seams(loaded, inventory, launch, is_loaded=is_loaded))


async def _store(diagnosis: Diagnosis, launch: Launch, redis_url: str | None) -> None:
    """Look at Redis and at what is in it."""
    settings: Settings | None = None

    def look() -> list[Finding]:
        nonlocal settings
        settings, findings = configuration.read(launch.env, redis_url)
        return findings

    await diagnosis.run("settings", look)
    if settings is None:
        return
    # Here, since the import takes long, and the child has begun by now.
    from otel_mcp.cli.doctor import store, traffic

    current = settings
    found = await guarded("redis", store.check(current), SECONDS)
    diagnosis.findings += found
    await diagnosis.run("hash-key", lambda: traffic.hash_key(current, launch))
    documents = None
    if current.redis_url is not None and all(one.status in {"ok", "warn"} for one in found if one.check == "redis"):
        documents = await _documents(diagnosis, current)
    await diagnosis.run("proxy", lambda: traffic.proxy(current, launch, documents))


async def _documents(diagnosis: Diagnosis, settings: Settings) -> list[dict[str, object]] | None:
    from redis.exceptions import ResponseError

    from otel_mcp.cli.doctor import traffic

    read: list[dict[str, object]] | None = None

    async def look() -> list[Finding]:
        nonlocal read
        try:
            read = await traffic.newest(settings)
        except ResponseError as error:
            return [skip("sessions", f"this user may not read the index of sessions ({type(error).__name__})")]
        return traffic.one_session_a_call(read)

    diagnosis.findings += await guarded("sessions", look(), SECONDS)
    return read
