"""A tool that asks for input before it answers (2026-07-28), and a client that answers for a person."""

from __future__ import annotations

import json
from itertools import cycle
from typing import Any, Final

import httpx2
from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

from tests.support.messages import CLIENT_INFO, MODERN, Message

_FORM: Final[dict[str, Any]] = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
_META: Final[Message] = {
    CLIENT_INFO: {"name": "person", "version": "1"},
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
}
ANSWER: Final[Message] = {"sure": {"action": "accept", "content": {"ok": True}}}


def ask(state: str | None, *, answered: bool) -> Any:
    """Be the body of a tool that asks twice, then is done."""
    if answered and state == "second":
        return "done"
    question = ElicitRequest(params=ElicitRequestFormParams(message="Sure?", requested_schema=_FORM))
    return InputRequiredResult(input_requests={"sure": question}, request_state="second" if answered else "first")


class Person:
    """Calls a tool, at one replica after the other, and answers what it is asked."""

    def __init__(self, *replicas: httpx2.AsyncClient, tool: str = "approve", **meta: Any) -> None:
        self._replicas, self._tool, self._meta = cycle(replicas), tool, {**_META, **meta}
        self.sent = 0
        self.session_id = ""

    async def call(self, state: str | None = None, answers: Message | None = None, **arguments: Any) -> Message:
        """Send the call, with the state and the answers of a later round; return its result, or its error."""
        self.sent += 1
        given = {"requestState": state, "inputResponses": answers}
        params: Message = {"name": self._tool, "arguments": arguments or {"a": 1}, "_meta": self._meta}
        params |= {name: value for name, value in given.items() if value is not None}
        answer = await next(self._replicas).post(
            "/mcp",
            json={"jsonrpc": "2.0", "id": self.sent, "method": "tools/call", "params": params},
            headers={
                "accept": "application/json, text/event-stream",
                "mcp-protocol-version": MODERN,
                "mcp-method": "tools/call",
                "mcp-name": self._tool,
            },
        )
        self.session_id = answer.headers.get("x-session-id", self.session_id)
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        reply: Message = json.loads(events[-1] if events else answer.text)
        return reply.get("result") or reply["error"]

    async def approve(self, **arguments: Any) -> list[Message]:
        """Make the whole logical call; return the results of its three rounds."""
        results = [await self.call(**arguments)]
        for _ in range(2):
            results.append(await self.call(results[-1].get("requestState"), ANSWER, **arguments))
        return results
