"""A real HTTP server that speaks OpenAI's chat completions, and may hang, flood, fail and talk nonsense."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, cast

ADVICE: Final = {
    "cause": "The tool does not say which order ids it takes.",
    "change": "Name the form of order_id in the description: digits only.",
    "tool": "find_orders",
    "confidence": "high",
}


def completion(text: str) -> dict[str, Any]:
    """A chat completion that says `text`."""
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


@dataclass
class Completions:
    """An endpoint: what it answers, and what it was asked."""

    answer: Any = field(default_factory=lambda: completion(json.dumps(ADVICE)))
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    hangs: bool = False
    """It begins no answer until it is closed."""
    floods: bool = False
    """Its answer has no end."""
    knows_schemas: bool = True
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    paths: list[str] = field(default_factory=list[str])
    keys: list[str | None] = field(default_factory=list["str | None"])
    sent: int = 0
    """Bytes of a flood that a client has taken."""
    closing: threading.Event = field(default_factory=threading.Event)

    def facts(self, number: int = -1) -> dict[str, Any]:
        """What a question says of the session."""
        return cast("dict[str, Any]", json.loads(self.asked[number]["messages"][-1]["content"]))


@contextmanager
def completions() -> Generator[Completions]:
    """An endpoint on a port of its own, for the time of the block."""
    state = Completions()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.paths.append(self.path)
            state.keys.append(self.headers["authorization"])
            state.asked.append(asked)
            if state.hangs:
                state.closing.wait()
                return
            status = 400 if "response_format" in asked and not state.knows_schemas else state.status
            payload = json.dumps(state.answer).encode()
            self.send_response(status)
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("content-type", "application/json")
            if not state.floods:
                self.send_header("content-length", str(len(payload)))
            self.end_headers()
            if state.floods:
                self._flood()
            else:
                self.wfile.write(payload)

        do_GET = do_POST

        def _flood(self) -> None:
            try:
                while not state.closing.is_set():
                    state.sent += self.wfile.write(b'{"choices": [' + b" " * 8192)
            except OSError:
                pass

        def log_message(self, format: str, *args: Any) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield state
        finally:
            state.closing.set()
            server.shutdown()
            thread.join()
