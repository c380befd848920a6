"""What every unit test may use."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import metadata

import pytest

from otel_mcp import current, guard, settings
from otel_mcp import runtime as runtime_module
from otel_mcp.runtime import Runtime
from otel_mcp.sessions import lookups, worker
from tests.support.asgi import PATIENCE
from tests.support.providers import Clock, Telemetry
from tests.support.stores import Server as Valkey

MakeRuntime = Callable[..., Runtime]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of the machine that runs the tests."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    getattr(settings, "_service_name").cache_clear()  # noqa: B009
    monkeypatch.setattr(current, "runtime", None)
    monkeypatch.setattr(current, "_uninstrumented", False)
    monkeypatch.setattr(current, "_options", {})
    monkeypatch.setattr(current, "_failed", False)


@pytest.fixture(autouse=True)
def time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may need longer than a server that ends waits for its store and exporters."""
    monkeypatch.setattr(runtime_module, "_FLUSH_SECONDS", 60.0)


@lru_cache
def known_entry_points(group: str) -> metadata.EntryPoints:
    """The entry points of this environment, read once: that takes longer than most tests."""
    return metadata.entry_points(group=group)


@pytest.fixture(autouse=True)
def quick_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtimes are made by the hundred here."""
    for name, module in list(sys.modules.items()):
        if name.startswith("otel_mcp") and hasattr(module, "entry_points"):
            monkeypatch.setattr(module, "entry_points", known_entry_points)


@pytest.fixture(autouse=True)
def no_failures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever we swallow is counted; a test that means it to happen asks for `failures`."""
    guard.failures.clear()
    getattr(guard, "_last_logged").clear()  # noqa: B009
    yield
    if "failures" not in request.fixturenames:
        assert guard.failures == Counter()


@pytest.fixture
def failures() -> Counter[str]:
    """Our own failures, by component."""
    return guard.failures


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    """Providers that export into memory."""
    made = Telemetry()
    yield made
    made.shut_down()


@pytest.fixture
def make_runtime(telemetry: Telemetry) -> Iterator[MakeRuntime]:
    """Makes runtimes on those providers, from settings given by keyword."""
    made: list[Runtime] = []

    def make(**options: object) -> Runtime:
        runtime = Runtime(
            settings.load(**{"service_name": "unit", "http_span": "off", **options}),
            telemetry.tracer_provider,
            telemetry.meter_provider,
            telemetry.logger_provider,
        )
        made.append(runtime)
        return runtime

    yield make
    for runtime in made:
        runtime.disable()


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """A real store for the tests of one file, which may empty it."""
    server = Valkey()
    yield server
    server.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is waited for as long as it takes: on a busy machine replicas would else decide alone."""
    monkeypatch.setattr(lookups, "PATIENCE", PATIENCE)
    monkeypatch.setattr(worker, "PATIENCE", PATIENCE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, runtime: Runtime) -> Clock:
    """The time that requests are measured by; it goes on only when a test moves it."""
    stopped = Clock()
    stopped.install(monkeypatch)
    return stopped


@pytest.fixture
def runtime(make_runtime: MakeRuntime) -> Runtime:
    """A runtime with the default settings, but for the HTTP span: most tests are about the span of a message."""
    return make_runtime()


@pytest.fixture
def logs(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Log lines of ours, from warnings on."""
    caplog.set_level(logging.WARNING, logger="otel_mcp")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("otel_mcp")]
