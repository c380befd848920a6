"""One object serves a request, and no layer is handed the functions of another."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

from otel_mcp import MCPMiddleware, exchange
from otel_mcp.runtime import Runtime
from otel_mcp.types import Message, Receive, Send
from tests.support.answers import result
from tests.support.asgi import post, read, respond
from tests.support.messages import call

pytestmark = pytest.mark.anyio


async def test_receive_and_send_are_bound_methods_of_one_object(runtime: Runtime) -> None:
    owners: list[object] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        owners.extend([receive.__self__, send.__self__])  # type: ignore[attr-defined]  # pyright: ignore
        await read(receive)
        await respond(send, result())

    await post(MCPMiddleware(app, runtime), call())

    assert owners[0] is owners[1]
    assert type(owners[0]).__name__ == "ExchangeHandler"


def classes() -> Iterator[type]:
    for module in pkgutil.iter_modules(exchange.__path__, f"{exchange.__name__}."):
        for _, found in inspect.getmembers(import_module(module.name), inspect.isclass):
            if found.__module__ == module.name:
                yield found


def takes_function(annotation: object) -> bool:
    return "Callable[" in str(annotation)


@pytest.mark.parametrize("found", list(classes()), ids=lambda found: found.__name__)
def test_a_constructor_takes_one_function_at_most(found: type[Any]) -> None:
    made: Callable[..., Any] = found.__init__
    parameters = inspect.signature(made).parameters.values()

    assert sum(takes_function(parameter.annotation) for parameter in parameters) <= 1
