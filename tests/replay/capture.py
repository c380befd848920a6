"""Recorded exchanges of real clients and servers: how they lie on disk, and how their chunks may be cut in other ways.

One file a scenario; ``A-server-mode-client`` and so on: A is the basic matrix,
B server-to-client requests and subscriptions, E a restarted server, F clients
that cancel or leave, H resumption, I the transport of 2024-11-05, J large and
slow results, K clients with OpenTelemetry, L clients in TypeScript (see `record`).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent / "captures"
NAMES: Final = sorted(path.stem for path in FOLDER.glob("*.json"))
_CUT: Final = re.compile(r"\.\.\.<(\d+) chars cut>\.\.\.")
_JUNCTION: Final = '","type":"text"}],"structuredContent":{"result":"'


@dataclass(frozen=True)
class Chunk:
    """One body message."""

    at: float
    """Seconds since the scenario began."""
    body: bytes
    more: bool


@dataclass(frozen=True)
class Recorded:
    """One HTTP exchange."""

    number: int
    began: float
    client: tuple[str, int]
    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    request: list[Chunk]
    status: int | None
    """`None` = the app returned without an answer."""
    response_headers: list[tuple[str, str]]
    response: list[Chunk]
    left: float | None
    """When the app learned that the client had gone."""
    ended: float

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)

    def response_header(self, name: str) -> str:
        return dict(self.response_headers).get(name, "")

    @property
    def streams(self) -> bool:
        return self.response_header("content-type").startswith("text/event-stream")

    @property
    def modern(self) -> bool:
        return (self.header("mcp-protocol-version") or "") >= "2026-07-28"

    @property
    def message(self) -> Any:
        """What was posted."""
        body = b"".join(chunk.body for chunk in self.request)
        return json.loads(body) if body else None


@dataclass(frozen=True)
class Capture:
    """One scenario: everything that one client did with one server."""

    name: str
    exchanges: list[Recorded]
    facts: dict[str, str] = field(default_factory=dict[str, str])


def load(name: str) -> Capture:
    """Read a scenario."""
    stored = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    facts = {key: stored[key] for key in ("server", "mode", "client")}
    return Capture(name, [_exchange(entry) for entry in stored["exchanges"]], facts)


def _exchange(stored: dict[str, Any]) -> Recorded:
    return Recorded(
        stored["n"],
        stored["t"],
        (stored["client"][0], stored["client"][1]),
        stored["method"],
        stored["path"],
        stored["query"],
        [(name, value) for name, value in stored["req_headers"]],
        [_chunk(entry) for entry in stored["req_chunks"]],
        stored["status"],
        [(name, value) for name, value in stored["resp_headers"] or ()],
        [_chunk(entry) for entry in stored["resp_chunks"]],
        stored["disconnect_t"],
        stored["end_t"],
    )


def _chunk(stored: dict[str, Any]) -> Chunk:
    return Chunk(stored["t"], _CUT.sub(_uncut, stored["text"]).encode(), stored["more"])


def _uncut(found: re.Match[str]) -> str:
    """What was cut out of a long result when it was stored: letters, and the place where it is repeated."""
    letters = int(found[1]) - len(_JUNCTION)
    return "x" * (letters // 2) + _JUNCTION + "x" * (letters - letters // 2)


def together(captures: Sequence[Capture]) -> Capture:
    """Several clients at once, as if they had begun together, half a millisecond apart."""
    exchanges: list[Recorded] = []
    for number, capture in enumerate(captures):
        earlier = capture.exchanges[0].began - number * 0.0005
        exchanges += [_shifted(each, earlier) for each in capture.exchanges]
    return Capture("+".join(capture.name for capture in captures), exchanges)


def _shifted(exchange: Recorded, earlier: float) -> Recorded:
    def moved(chunks: list[Chunk]) -> list[Chunk]:
        return [replace(chunk, at=round(chunk.at - earlier, 5)) for chunk in chunks]

    return replace(
        exchange,
        began=round(exchange.began - earlier, 5),
        request=moved(exchange.request),
        response=moved(exchange.response),
        left=round(exchange.left - earlier, 5) if exchange.left is not None else None,
        ended=round(exchange.ended - earlier, 5),
    )


Recut = Callable[[Capture], Capture]


def as_recorded(capture: Capture) -> Capture:
    return capture


def byte_by_byte(capture: Capture) -> Capture:
    """Every byte a message of its own; of what is large, every 16 kB."""

    def cut(chunk: Chunk) -> list[bytes]:
        size = 1 if len(chunk.body) < 20_000 else 16_384
        return [chunk.body[at : at + size] for at in range(0, len(chunk.body), size)]

    return _recut(capture, cut, request=7)


def at_random(capture: Capture) -> Capture:
    """Cut in the middle of events, of lines, of line ends and of characters, with empty messages between."""
    generator = random.Random(capture.name)

    def cut(chunk: Chunk) -> list[bytes]:
        cuts = sorted(generator.choices(range(len(chunk.body) + 1), k=generator.randrange(0, 9)))
        return [chunk.body[start:end] for start, end in zip([0, *cuts], [*cuts, len(chunk.body)], strict=True)]

    return _recut(capture, cut, request=generator.randrange(10, 200))


def between_line_ends(capture: Capture) -> Capture:
    """Every CRLF cut in two."""

    def cut(chunk: Chunk) -> list[bytes]:
        return [piece for piece in re.split(rb"(?<=\r)(?=\n)", chunk.body) if piece]

    return _recut(capture, cut)


def _recut(capture: Capture, cut: Callable[[Chunk], list[bytes]], *, request: int = 0) -> Capture:
    def pieces(chunks: Sequence[Chunk], how: Callable[[Chunk], list[bytes]]) -> list[Chunk]:
        found: list[Chunk] = []
        for chunk in chunks:
            parts = how(chunk) or [b""]
            found += [Chunk(chunk.at, part, True) for part in parts[:-1]]
            found.append(Chunk(chunk.at, parts[-1], chunk.more))
        return found

    def few(chunk: Chunk) -> list[bytes]:
        return [chunk.body[at : at + request] for at in range(0, len(chunk.body), request)] if request else [chunk.body]

    return replace(
        capture,
        exchanges=[
            replace(each, request=pieces(each.request, few), response=pieces(each.response, cut))
            for each in capture.exchanges
        ],
    )


def coalesced(capture: Capture) -> Capture:
    """Messages of one answer joined, unless another request began between them."""
    begins = [each.began for each in capture.exchanges]

    def join(chunks: list[Chunk]) -> list[Chunk]:
        joined: list[Chunk] = []
        for chunk in chunks:
            last = joined[-1] if joined else None
            if last is not None and last.more and not any(last.at <= began <= chunk.at for began in begins):
                joined[-1] = Chunk(chunk.at, last.body + chunk.body, chunk.more)
            else:
                joined.append(chunk)
        return joined

    return replace(capture, exchanges=[replace(each, response=join(each.response)) for each in capture.exchanges])


def reframed(capture: Capture) -> Capture:
    """Event streams as other servers may write them: other line ends, comments, data in several lines."""
    generator = random.Random(capture.name)

    def rewrite(chunk: Chunk) -> Chunk:
        events = [part for part in chunk.body.split(b"\r\n\r\n") if part]
        if not events or len(chunk.body) > 100_000:
            return chunk
        return replace(chunk, body=b"".join(_rewritten(each, generator) for each in events))

    return replace(
        capture,
        exchanges=[
            replace(each, response=[rewrite(chunk) for chunk in each.response]) if each.streams else each
            for each in capture.exchanges
        ],
    )


def _rewritten(lines: bytes, generator: random.Random) -> bytes:
    end = generator.choice((b"\n", b"\r", b"\r\n"))
    written = b": a comment \xe2\x80\xa8 with its own line separator" + end if generator.random() < 0.5 else b""
    for line in lines.split(b"\r\n"):
        key, _, value = line.partition(b": ")
        if key == b"data" and value.startswith(b"{"):
            pretty = json.dumps(json.loads(value), ensure_ascii=False, indent=1).encode()
            written += b"".join(b"data:" + generator.choice((b"", b" ")) + part + end for part in pretty.split(b"\n"))
        else:
            written += line + end
    return written + end


CHUNKINGS: Final[dict[str, Recut]] = {
    "as recorded": as_recorded,
    "byte by byte": byte_by_byte,
    "at random": at_random,
    "between line ends": between_line_ends,
    "coalesced": coalesced,
    "reframed": reframed,
}
