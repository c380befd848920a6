"""An endpoint that hangs, floods, fails or answers something else costs one exception and a pause."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import anyio
import openai
import pytest
from pydantic import ValidationError

from otel_mcp.agent import endpoint as endpoint_module
from otel_mcp.agent.endpoint import MAX_ANSWER, MAX_PAUSE, AnswerTooLarge, Endpoint, SchemaRefused
from otel_mcp.agent.question import Question
from otel_mcp.settings import load
from tests.support.completions import Completions, completion, completions

pytestmark = pytest.mark.anyio

ASKED = Question("what to do", '{"calls": []}', frozenset())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Completions]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with completions() as made:
        yield made


class Clock:
    """Seconds of the breaker."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(endpoint_module, "time", made)
    return made


def made(server: Completions) -> Endpoint:
    return Endpoint(load(agent_model="small", agent_url=server.url))


async def test_a_question_is_one_request_with_a_schema_for_the_answer(server: Completions) -> None:
    server.answer = completion("the answer")

    assert await made(server).ask(ASKED) == "the answer"

    (asked,) = server.asked
    assert asked.pop("response_format")["json_schema"]["name"] == "advice"
    assert asked == {
        "model": "small",
        "messages": [{"role": "system", "content": "what to do"}, {"role": "user", "content": '{"calls": []}'}],
    }
    assert (server.paths, server.keys) == (["/v1/chat/completions"], ["Bearer none"])


async def test_an_endpoint_without_schemas_is_asked_without_one_from_then_on(server: Completions) -> None:
    server.knows_schemas = False
    endpoint = made(server)

    with pytest.raises(SchemaRefused):
        await endpoint.ask(ASKED)
    assert not endpoint.is_paused

    for _ in range(2):
        await endpoint.ask(ASKED)
    assert ["response_format" in asked for asked in server.asked] == [True, False, False]


async def test_each_url_gets_the_key_that_belongs_to_it(
    server: Completions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-openai")
    await made(server).ask(ASKED)

    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    await Endpoint(load(agent_model="small")).ask(ASKED)

    monkeypatch.setenv("OTEL_PYTHON_MCP_AGENT_KEY", "key-of-the-agent")
    await made(server).ask(ASKED)

    assert server.keys == ["Bearer none", "Bearer key-of-openai", "Bearer key-of-the-agent"]
    assert "key-of" not in caplog.text
    assert "key-of" not in repr(load(agent_model="small"))


async def test_an_endpoint_that_hangs_is_given_up(server: Completions, monkeypatch: pytest.MonkeyPatch) -> None:
    await made(server).ask(ASKED)  # The library is loaded now.
    monkeypatch.setattr(endpoint_module, "TIMEOUT", 0.05)
    server.hangs = True
    endpoint = made(server)

    with anyio.fail_after(15), pytest.raises((TimeoutError, openai.APITimeoutError)):
        await endpoint.ask(ASKED)

    assert endpoint.is_paused


@pytest.mark.parametrize("status", [200, 500, 302])
async def test_a_flood_is_not_read_to_its_end(server: Completions, status: int) -> None:
    server.floods, server.status = True, status
    endpoint = made(server)

    with anyio.fail_after(60), pytest.raises((AnswerTooLarge, openai.APIStatusError)):
        await endpoint.ask(ASKED)

    assert endpoint.is_paused
    # What a client has read, and the buffers of a connection.
    assert server.sent < MAX_ANSWER + 16 * 1024 * 1024


@pytest.mark.parametrize("answer", [{}, [], {"choices": []}, completion("x")["choices"], "text", None])
async def test_what_is_no_completion_is_refused(server: Completions, answer: Any) -> None:
    server.answer = answer
    endpoint = made(server)

    with pytest.raises(ValidationError):
        await endpoint.ask(ASKED)

    assert endpoint.is_paused


async def test_a_redirect_is_not_followed(server: Completions) -> None:
    server.status, server.headers = 302, {"location": f"{server.url}/elsewhere"}

    with pytest.raises(openai.APIStatusError):
        await made(server).ask(ASKED)

    assert server.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize(
    ("status", "headers", "pause"),
    [
        (429, {"retry-after": "300"}, 300.0),
        (429, {"retry-after": "1"}, 60.0),
        (429, {"retry-after": "1000000000"}, MAX_PAUSE),
        (503, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 60.0),
        (500, {}, 60.0),
        (401, {}, MAX_PAUSE),
    ],
)
async def test_an_endpoint_that_refuses_is_spared_as_long_as_it_asks(
    server: Completions, clock: Clock, status: int, headers: dict[str, str], pause: float
) -> None:
    server.status, server.headers = status, headers
    endpoint = made(server)

    with pytest.raises(openai.APIStatusError):
        await endpoint.ask(ASKED)

    clock.now += pause - 1
    assert endpoint.is_paused
    clock.now += 2
    assert not endpoint.is_paused
    assert len(server.asked) == 1


async def test_pauses_grow_until_an_answer_comes(server: Completions, clock: Clock) -> None:
    endpoint, pauses = made(server), list[float]()

    async def fail() -> None:
        server.status = 500
        with pytest.raises(openai.APIStatusError):
            await endpoint.ask(ASKED)
        began = clock.now
        while endpoint.is_paused:
            clock.now += 30
        pauses.append(clock.now - began)

    for _ in range(8):
        await fail()
    server.status = 200
    await endpoint.ask(ASKED)
    await fail()

    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 60]
