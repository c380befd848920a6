"""How a tool failed, known by whether the user's own function had been entered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from otel_mcp.integrations.tools import note
from otel_mcp.model.call import Call, Exchange


class Model(BaseModel):
    number: int


class ToolError(Exception):
    pass


class ProtocolError(Exception):
    def __init__(self, code: int) -> None:
        self.error = SimpleNamespace(code=code)


def plain() -> object:
    return Model.model_validate({"number": "x"})


async def waiting() -> object:
    await asyncio.sleep(0)
    return plain()


def generating() -> Generator[object]:
    yield plain()


class Tools:
    def method(self) -> object:
        return plain()

    def __call__(self) -> object:
        return plain()


FUNCTIONS: dict[str, Callable[[], Any]] = {
    "plain": plain,
    "async": waiting,
    "generator": generating,
    "method": Tools().method,
    "object": Tools(),
    "partial": partial(plain),
    "partial of a partial": partial(partial(waiting)),
}


def run(function: Callable[[], Any]) -> BaseException:
    """What a library sees: the exception, raised out of the function."""
    try:
        value = function()
        if asyncio.iscoroutine(value):
            asyncio.run(value)
        elif isinstance(value, Generator):
            list(value)  # pyright: ignore[reportUnknownArgumentType]
    except Exception as error:
        return error
    raise AssertionError


def kind_of(error: BaseException, function: object) -> str | None:
    call = Call(Exchange("POST", "/mcp", {}), "tools/call", 1, "add", {}, {})
    note(call, error, function)
    return call.tool_failure


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_a_validation_within_the_function_is_an_exception(function: Callable[[], Any]) -> None:
    error = run(function)

    assert isinstance(error, ValidationError)
    assert kind_of(error, function) == "exception"


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_a_validation_before_the_function_is_of_its_arguments(function: Callable[[], Any]) -> None:
    def validates() -> object:
        return Model.model_validate({"number": "x"})

    assert kind_of(run(validates), function) == "invalid_arguments"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ToolError("secret"), "tool"),
        (type("Own", (ToolError,), {})("secret"), "tool"),
        (KeyError("secret"), "exception"),
        (ProtocolError(-32602), "invalid_arguments"),
        (ProtocolError(-32603), "exception"),
        (ProtocolError(-32001), "tool"),
    ],
    ids=["said", "said by a class of its own", "raised", "-32602", "-32603", "-32001"],
)
def test_the_exception_of_a_tool_shows_how_it_failed(error: Exception, kind: str) -> None:
    assert kind_of(error, plain) == kind
