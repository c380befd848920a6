"""Patches of web servers: each wraps the app that the server loads, whatever its framework."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from otel_mcp import current
from otel_mcp.guard import guarded
from otel_mcp.integrations.http import ObservedApp
from otel_mcp.integrations.patching import Patches


def uvicorn(module: ModuleType, patches: Patches) -> None:
    """Patch uvicorn, and gunicorn with uvicorn's workers."""
    patches.replace(module.Config, "load", _after("loaded_app"))


def uvicorn_server(module: ModuleType, patches: Patches) -> None:
    """Patch uvicorn's shutdown: it ends by raising the signal that stopped it, so that ``atexit`` never runs."""

    def make(shutdown: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(shutdown)
        async def ended(self: Any, *args: Any, **options: Any) -> Any:
            result = await shutdown(self, *args, **options)
            with guarded("uvicorn"):
                if (runtime := current.runtime) is not None and not getattr(self, "force_exit", False):
                    await runtime.server_ended()
            return result

        return ended

    patches.replace(module.Server, "shutdown", make)


def gunicorn(module: ModuleType, patches: Patches) -> None:
    """Patch the ASGI worker of gunicorn."""
    patches.replace(module.ASGIWorker, "load_wsgi", _after("asgi"))


def hypercorn(module: ModuleType, patches: Patches) -> None:
    """Patch Hypercorn, on asyncio and trio."""
    patches.replace(module.ASGIWrapper, "__init__", _after("app"))


def granian(module: ModuleType, patches: Patches) -> None:
    """Patch Granian, whose workers look these names up when they start."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def wrapper(callback: Any, *args: Any, **kwargs: Any) -> Any:
            return original(ObservedApp(callback), *args, **kwargs)

        return wrapper

    def make_lifespan(original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def __init__(self: Any, callback: Any, *args: Any, **kwargs: Any) -> None:
            original(self, ObservedApp(callback), *args, **kwargs)

        return __init__

    patches.replace(module, "_callback_wrapper", make)
    # A worker of Granian ends without ``atexit``; only the lifespan announces the end.
    patches.replace(module.LifespanProtocol, "__init__", make_lifespan)


def _after(attribute: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Wrap the app that a method stores in `attribute`."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def loaded(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            with guarded("server"):
                setattr(self, attribute, ObservedApp(getattr(self, attribute)))

        return loaded

    return make
