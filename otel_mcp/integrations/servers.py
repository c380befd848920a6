"""Patches of web servers, where they load an app: whatever it is made of, it is observed.

Each wraps what the server is about to call, and nothing else of it.
"""

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
    """Patch the end of uvicorn, which raises the signal again that stopped it: ``atexit`` never runs."""

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
    """Patch Hypercorn, on asyncio and on trio."""
    patches.replace(module.ASGIWrapper, "__init__", _after("app"))


def granian(module: ModuleType, patches: Patches) -> None:
    """Patch Granian; its workers take the function up when they import it."""

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
    # A worker of Granian ends without ``atexit``: only the lifespan shows that it does.
    patches.replace(module.LifespanProtocol, "__init__", make_lifespan)


def _after(attribute: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Wrap the app that a method leaves in `attribute`, once it has run."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def loaded(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            with guarded("server"):
                setattr(self, attribute, ObservedApp(getattr(self, attribute)))

        return loaded

    return make
