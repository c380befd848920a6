"""Other people's names are replaced and put back, and no failure of ours gets into an import."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from otel_mcp import MCPInstrumentor, current
from otel_mcp.integrations.patching import TARGETS, Patches


class Library:
    """Somebody's class."""

    def serve(self, text: str) -> str:
        return f"served {text}"

    @staticmethod
    def plain(text: str) -> str:
        return text


def shouting(original: Callable[..., str]) -> Callable[..., str]:
    def serve(self: Library, text: str) -> str:
        return original(self, text).upper()

    return serve


@pytest.fixture(autouse=True)
def library() -> Iterator[None]:
    before = dict(Library.__dict__)
    yield
    Library.serve = before["serve"]  # type: ignore[method-assign]


def test_a_patched_name_is_restored_to_the_same_object() -> None:
    original = Library.__dict__["serve"]
    patches = Patches()

    assert patches.replace(Library, "serve", shouting)
    assert Library().serve("x") == "SERVED X"
    patches.restore()

    assert Library.__dict__["serve"] is original


def test_each_target_names_a_function_of_an_integration() -> None:
    named = [inspect.getclosurevars(apply).nonlocals for _, apply in TARGETS]

    for each in named:
        assert callable(getattr(import_module(f"otel_mcp.integrations.{each['module']}"), each["function"], None)), each


def test_a_name_that_is_not_there_is_left_alone() -> None:
    assert not Patches().replace(Library, "missing", shouting)
    assert not hasattr(Library, "missing")


def test_an_inherited_name_is_left_to_the_class_that_has_it() -> None:
    class Child(Library):
        pass

    assert not Patches().replace(Child, "serve", shouting)
    assert Child().serve("x") == "served x"


def test_a_name_is_replaced_once() -> None:
    patches = Patches()

    assert patches.replace(Library, "serve", shouting)
    assert not patches.replace(Library, "serve", shouting)
    assert not Patches().replace(Library, "serve", shouting)
    assert Library().serve("x") == "SERVED X"
    patches.restore()


def test_after_a_restore_it_can_be_replaced_again() -> None:
    patches = Patches()
    for _ in range(3):
        assert patches.replace(Library, "serve", shouting)
        patches.restore()
        assert Library().serve("x") == "served x"


def test_what_somebody_wrapped_around_ours_meanwhile_stays() -> None:
    patches = Patches()
    patches.replace(Library, "serve", shouting)
    ours = Library.serve

    def theirs(self: Library, text: str) -> str:
        return f"<{ours(self, text)}>"

    Library.serve = theirs  # type: ignore[method-assign]
    patches.restore()

    assert Library.serve is theirs
    assert Library().serve("x") == "<SERVED X>"


def test_everything_is_restored_newest_first_though_one_of_them_fails(failures: Counter[str]) -> None:
    patches = Patches()
    order: list[str] = []
    patches._undo.append(lambda: order.append("first"))  # pyright: ignore[reportPrivateUsage]
    patches._undo.append(lambda: 1 / 0)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportPrivateUsage]
    patches._undo.append(lambda: order.append("last"))  # pyright: ignore[reportPrivateUsage]

    patches.restore()

    assert order == ["last", "first"]
    assert failures == Counter({"uninstrument": 1})


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Makes modules that can be imported, and forgets them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def make(name: str) -> str:
        (tmp_path / f"{name}.py").write_text("class Thing:\n    def run(self):\n        return 1\n", encoding="utf-8")
        made.append(name)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


def test_a_module_is_patched_on_import_and_never_imported_for_it(importable: Callable[[str], str]) -> None:
    name = importable("unit_patched_one")
    seen: list[ModuleType] = []

    Patches().on_import(name, lambda module, _: seen.append(module))

    assert name not in sys.modules
    assert seen == []
    module = import_module(name)
    assert seen == [module]


def test_a_module_that_is_there_is_patched_now(importable: Callable[[str], str]) -> None:
    module = import_module(importable("unit_patched_two"))
    seen: list[ModuleType] = []

    Patches().on_import("unit_patched_two", lambda loaded, _: seen.append(loaded))

    assert seen == [module]


def test_a_patch_that_raises_does_not_reach_the_import(
    importable: Callable[[str], str], failures: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(module: ModuleType, patches: Patches) -> None:
        raise AttributeError("secret")

    Patches().on_import(importable("unit_patched_three"), broken)

    assert import_module("unit_patched_three").Thing().run() == 1
    assert failures == Counter({"patch unit_patched_three": 1})
    assert "secret" not in caplog.text


def test_a_hook_of_an_earlier_generation_does_nothing(importable: Callable[[str], str]) -> None:
    patches = Patches()
    seen: list[ModuleType] = []
    patches.on_import(importable("unit_patched_four"), lambda module, _: seen.append(module))

    patches.restore()
    import_module("unit_patched_four")

    assert seen == []


PATCHED = [
    ("starlette.applications", "Starlette", "__call__"),
    ("starlette.routing", "Route", "handle"),
    ("uvicorn.config", "Config", "load"),
    ("mcp.server.streamable_http_manager", "StreamableHTTPSessionManager", "handle_request"),
    ("mcp.server.sse", "SseServerTransport", "handle_post_message"),
    ("mcp.server.runner", "ServerRunner", "_compose_server_middleware"),
    ("mcp.server.mcpserver.tools.base", "Tool", "run"),
    ("fastmcp.server.telemetry", None, "get_session_span_attributes"),
]


def held(module: str, owner: str | None, name: str) -> Any:
    loaded = import_module(module)
    return (getattr(loaded, owner) if owner is not None else loaded).__dict__[name]


def test_uninstrument_restores_the_very_originals_that_instrument_replaced() -> None:
    places = [place for place in PATCHED if find_spec(place[0].partition(".")[0]) is not None]
    originals = [held(*place) for place in places]
    instrumentor = MCPInstrumentor()
    try:
        for _ in range(2):
            instrumentor.instrument()
            replaced = [held(*place) for place in places]
            assert all(now is not before for now, before in zip(replaced, originals, strict=True))
            instrumentor.uninstrument()
            restored = [held(*place) for place in places]
            assert all(now is before for now, before in zip(restored, originals, strict=True))
    finally:
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()
    assert {module for module, _, _ in PATCHED} <= {module for module, _ in TARGETS}


NO_APP = {"Route.handle", "OpenTelemetryMiddleware.__call__", "FastMCPServerMiddleware.__call__"}
"""What nobody takes for an app: a route is one itself, by its own `__call__`, which is left alone; and what serves
messages."""


def test_a_replacement_is_a_coroutine_function_if_the_original_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers, test clients and asgiref tell ASGI 3 from ASGI 2 and WSGI by asking for a coroutine function."""
    for module, _ in TARGETS:
        if find_spec(module.partition(".")[0]) is not None:
            with suppress(ImportError):
                import_module(module)
    replaced: dict[str, tuple[Any, Any]] = {}
    replace = Patches.replace

    def noting(self: Patches, owner: Any, name: str, make: Callable[[Any], Any]) -> bool:
        original = owner.__dict__.get(name)
        done = replace(self, owner, name, make)
        if done:
            replaced[f"{owner.__name__}.{name}"] = original, owner.__dict__[name]
        return done

    monkeypatch.setattr(Patches, "replace", noting)
    instrumentor = MCPInstrumentor()
    instrumentor.instrument()
    instrumentor.uninstrument()

    changed = {
        name
        for name, (original, ours) in replaced.items()
        if inspect.iscoroutinefunction(original) != inspect.iscoroutinefunction(ours)
    }
    assert changed == NO_APP
    assert {"StreamableHTTPSessionManager.handle_request", "SseServerTransport.handle_post_message"} <= set(replaced)


def test_instrument_never_raises_and_asks_for_no_library(
    monkeypatch: pytest.MonkeyPatch, failures: Counter[str]
) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(current, "configure", broken)
    instrumentor = MCPInstrumentor()

    instrumentor.instrument(skip_dep_check=True)
    instrumentor.uninstrument()

    assert instrumentor.instrumentation_dependencies() == ()
    assert failures["instrument"] == 1


def test_arguments_of_instrument_reach_the_runtime(telemetry: Any) -> None:
    instrumentor = MCPInstrumentor()
    instrumentor.instrument(tracer_provider=telemetry.tracer_provider, session_ttl=7, http_span="off")
    try:
        runtime = current.build()
        assert runtime is not None
        assert (runtime.settings.session_ttl, runtime.settings.http_span) == (7.0, "off")
    finally:
        instrumentor.uninstrument()
    assert current.runtime is None
    assert current.build() is None
