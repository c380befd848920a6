"""What a client sent and got, as its own HTTP layer saw it, and how two such records are compared."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_IDS: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIMES: Final = re.compile(r": ping[^\r\n]*[\r\n]*")
_MINTED: Final = "om1."
"""Begins every id that the package gives to a client."""
_OURS: Final = frozenset({"x-session-id"})
_VARYING: Final = frozenset({"date", "keep-alive"})


@dataclass(frozen=True)
class Exchange:
    """One request with its answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: str
    status: int
    """0 = there was none."""
    answered: dict[str, str]
    answer: str

    @property
    def message(self) -> dict[str, Any]:
        """What was posted."""
        return json.loads(self.body) if self.method == "POST" and self.body else {}

    @property
    def modern(self) -> bool:
        return self.headers.get("mcp-protocol-version", "") >= "2026-07-28"

    @property
    def asked(self) -> tuple[str, str, str]:
        """What was asked, whenever and in whatever session."""
        return self.method, self.path, self.body

    def as_answered(self) -> str:
        """The request and its answer as text, with ids and times masked and without headers of ours."""
        ours = _OURS if self._server_gave_an_id() else _OURS | {"mcp-session-id"}
        headers = {name: value for name, value in self.answered.items() if name not in ours | _VARYING}
        text = json.dumps([self.method, self.path, self.body, self.status, sorted(headers.items()), self.answer])
        return _TIMES.sub("", _IDS.sub("<id>", text))

    def _server_gave_an_id(self) -> bool:
        return not self.answered.get("mcp-session-id", _MINTED).startswith(_MINTED)


def read(record: Path) -> list[Exchange]:
    """The exchanges of a record."""
    return [Exchange(**json.loads(line)) for line in record.read_text().splitlines()] if record.exists() else []


def requests(exchanges: list[Exchange]) -> Counter[tuple[str, str]]:
    """Method and id of every request message; an id as an attribute has it."""
    messages = (exchange.message for exchange in exchanges)
    return Counter(
        (message["method"], str(message["id"])) for message in messages if {"method", "id"} <= message.keys()
    )


def methods(exchanges: list[Exchange]) -> Counter[str]:
    """Methods of all messages, notifications among them."""
    return Counter(exchange.message["method"] for exchange in exchanges if "method" in exchange.message)


def client_name(exchanges: list[Exchange]) -> str:
    """What the client calls itself: in the handshake, or since 2026-07-28 in each message."""
    for params in (exchange.message.get("params") or {} for exchange in exchanges):
        info = params.get("clientInfo") or (params.get("_meta") or {}).get("io.modelcontextprotocol/clientInfo")
        if info:
            return info["name"]
    return ""


def differences(ours: list[Exchange], bare: list[Exchange]) -> list[str]:
    """How the answers that a client got with us differ from those without."""
    # An id of ours has clients name it in requests for streams, and end a session that they would not have had.
    minted = any(exchange.answered.get("mcp-session-id", "").startswith(_MINTED) for exchange in ours)
    # A client that leaves does not always wait: then nobody can say what it would have got.
    unheard = {exchange.asked for exchange in (*ours, *bare) if not exchange.status}
    with_us, without = (
        Counter(
            exchange.as_answered()
            for exchange in side
            if exchange.asked not in unheard and (exchange.method == "POST" or not minted)
        )
        for side in (ours, bare)
    )
    only = [("only with us", with_us - without), ("only without", without - with_us)]
    return [f"{where}: {text[:600]}" for where, texts in only for text in texts.elements()]
