"""The LLM observer of the examples against a real HTTP server that speaks its protocol."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.error import HTTPError

import pytest

from examples import llm_observer
from examples.llm_observer import LLMObserver, Settings
from otel_mcp import SessionState, ToolCall

SESSION = SessionState(session_id="s-1", client_name="planner-agent", user_agent="python")


@dataclass
class Endpoint:
    """A chat-completions endpoint: what it was asked, and what it answers."""

    answer: Any = None
    status: int = 200
    location: str = ""
    paths: list[str] = field(default_factory=list[str])
    keys: list[str | None] = field(default_factory=list["str | None"])
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    base_url: str = ""

    def facts(self) -> dict[str, Any]:
        """What the last request contained of a call."""
        return cast("dict[str, Any]", json.loads(self.requests[-1]["messages"][-1]["content"]))


def completion(text: str) -> dict[str, Any]:
    """A chat completion that says `text`."""
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """An endpoint on a port of its own."""
    state = Endpoint(answer=completion("looks like a timeout, not urgent"))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            state.paths.append(self.path)
            state.keys.append(self.headers["authorization"])
            state.requests.append(json.loads(body))
            payload = json.dumps(state.answer).encode()
            self.send_response(state.status)
            if state.location:
                self.send_header("location", state.location)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent."""

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.base_url = f"http://127.0.0.1:{server.server_port}/v1"
        yield state
        server.shutdown()
        thread.join()


def tool_call(**fields: Any) -> ToolCall:
    """A tool call that failed, unless changed."""
    started = datetime(2026, 11, 22, tzinfo=UTC)
    defaults: dict[str, Any] = {
        "tool_name": "charge_card",
        "started_at": started,
        "duration": 0.25,
        "error_type": "tool_error",
        "result_bytes": 120,
        "arguments_digest": "5f0c",
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
    }
    return ToolCall(**{**defaults, **fields})


def observe(settings: Settings, *calls: ToolCall) -> None:
    """Let one observer judge calls, one after the other."""

    async def all_calls() -> None:
        observer = LLMObserver(settings)
        for call in calls:
            await observer(call, SESSION)

    asyncio.run(all_calls())


def test_failing_call_is_judged_and_the_verdict_is_logged(endpoint: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="examples.llm_observer"):
        observe(Settings(endpoint.base_url, api_key="k", model="small"), tool_call())

    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.keys == ["Bearer k"]
    assert endpoint.requests[0]["model"] == "small"
    assert [m["role"] for m in endpoint.requests[0]["messages"]] == ["system", "user"]
    assert caplog.messages == ["charge_card: looks like a timeout, not urgent"]


def test_nothing_but_names_durations_and_error_types_is_sent_by_default(endpoint: Endpoint) -> None:
    observe(
        Settings(endpoint.base_url),
        tool_call(arguments={"card": "4111"}, result={"text": "card 4111 was declined"}),
    )

    assert endpoint.keys == [None]
    assert endpoint.facts() == {
        "tool": "charge_card",
        "client": "planner-agent",
        "duration_seconds": 0.25,
        "error_type": "tool_error",
    }
    assert "4111" not in json.dumps(endpoint.requests)


def test_content_is_sent_only_when_allowed_and_present(endpoint: Endpoint) -> None:
    settings = Settings(endpoint.base_url, send_content=True)

    observe(settings, tool_call(arguments={"card": "4111"}))
    assert json.loads(endpoint.facts()["arguments"]) == {"card": "4111"}
    assert "result" not in endpoint.facts()

    observe(settings, tool_call())
    assert endpoint.facts().keys() == {"tool", "client", "duration_seconds", "error_type"}


def test_slow_call_is_judged_and_a_quick_one_that_worked_is_not(endpoint: Endpoint) -> None:
    settings = Settings(endpoint.base_url, slow_seconds=2)
    quick = tool_call(tool_name="quick", error_type=None, duration=1.9)
    slow = tool_call(tool_name="slow", error_type=None, duration=2.1)

    observe(settings, quick, slow)

    assert [endpoint.facts()["tool"]] == ["slow"]
    assert len(endpoint.requests) == 1


def test_same_failure_is_not_asked_about_again_at_once(endpoint: Endpoint) -> None:
    observe(
        Settings(endpoint.base_url),
        tool_call(),
        tool_call(),
        tool_call(error_type="cancelled"),
    )

    assert len(endpoint.requests) == 2


def test_verdict_is_one_short_line_whatever_the_model_says(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.answer = completion("first\nERROR forged\x1b[31m line " + "x" * 5000)

    with caplog.at_level(logging.WARNING, logger="examples.llm_observer"):
        observe(Settings(endpoint.base_url), tool_call())

    (message,) = caplog.messages
    assert message.startswith("charge_card: first ERROR forged[31m line x")
    assert len(message) == len("charge_card: ") + 300


@pytest.mark.parametrize("answer", [{}, [], {"choices": []}, completion("x")["choices"], "text"])
def test_answer_that_is_no_completion_raises(endpoint: Endpoint, answer: Any) -> None:
    endpoint.answer = answer

    with pytest.raises(ValueError, match="no chat completion"):
        observe(Settings(endpoint.base_url), tool_call())


def test_refusal_raises_and_leaves_the_failure_to_the_caller(endpoint: Endpoint) -> None:
    endpoint.status = 429

    with pytest.raises(HTTPError, match="429"):
        observe(Settings(endpoint.base_url), tool_call())


def test_redirect_is_not_followed_so_that_the_key_stays_here(endpoint: Endpoint) -> None:
    endpoint.status, endpoint.location = 302, f"{endpoint.base_url}/elsewhere"

    with pytest.raises(HTTPError, match="302"):
        observe(Settings(endpoint.base_url, api_key="k"), tool_call())

    assert endpoint.paths == ["/v1/chat/completions"]


def test_settings_come_from_the_environment(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_observer, "_observer", None)
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.base_url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", "from-env")
    monkeypatch.setenv("LLM_OBSERVER_MODEL", "local")
    monkeypatch.setenv("LLM_OBSERVER_SEND_CONTENT", "true")

    asyncio.run(llm_observer.observe(tool_call(result="declined"), SESSION))

    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.keys == ["Bearer from-env"]
    assert endpoint.requests[0]["model"] == "local"
    assert endpoint.facts()["result"] == '"declined"'
    assert "from-env" not in repr(Settings.from_environment())
