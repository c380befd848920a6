"""The decoder of event streams, against an independent reading of the specification, however it is fed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from otel_mcp.wire.sse import Decoder, Event, result_size

LIMIT = 64
ENDS = (b"\r\n", b"\n", b"\r")


def reference(stream: bytes) -> list[tuple[bytes, bytes]]:
    """Events of a whole stream as the HTML standard has it: name and data."""
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    events: list[tuple[bytes, bytes]] = []
    name, data = b"", list[bytes]()
    for line in lines[:-1]:
        if not line:
            if data:
                events.append((name, b"\n".join(data)))
            name, data = b"", []
            continue
        key, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if key == b"data":
            data.append(value)
        elif key == b"event":
            name = value
    return events


def fed(stream: bytes, cuts: list[int], limit: int = LIMIT) -> list[Event]:
    """Events of a stream that comes in pieces."""
    decoder = Decoder(limit)
    borders = [0, *cuts, len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(borders)]
    return [event for piece in pieces for event in decoder.feed(piece)]


def with_data(events: list[Event]) -> list[tuple[bytes, bytes | None]]:
    """Events that mean anything: one without data is none."""
    return [(event.name, event.data) for event in events if event.data != b""]


def chunkings(stream: bytes, seed: int, count: int = 8) -> Iterator[list[int]]:
    """At once, byte by byte, and at random."""
    yield []
    yield list(range(1, len(stream)))
    generator = random.Random(seed)
    for _ in range(count):
        yield sorted(generator.choices(range(len(stream) + 1), k=generator.randrange(1, 12)))


def random_stream(generator: random.Random) -> bytes:
    """A stream of fields, comments, blank lines and text that only looks like line ends."""
    words = (
        b"{}",
        b'"id":1',
        "\u2028\u2029\x85".encode(),
        "\u00e9".encode(),
        b"\x0b\x0c\x1c",
        b" ",
        b":",
        b"data:",
        b"",
    )
    stream = b"\xef\xbb\xbf" if generator.random() < 0.2 else b""
    for _ in range(generator.randrange(1, 12)):
        field = generator.choice(
            (b"data: ", b"data:", b"data", b"event: ", b"id: ", b"retry: ", b": ", b"", b"other: ")
        )
        text = b"".join(generator.choices(words, k=generator.randrange(0, 3)))
        stream += field + text + generator.choice(ENDS)
        if generator.random() < 0.5:
            stream += generator.choice(ENDS)
    return stream + generator.choice(ENDS) * 2


@pytest.mark.parametrize("seed", range(150))
def test_any_stream_in_any_chunking_reads_as_the_standard_says(seed: int) -> None:
    stream = random_stream(random.Random(seed))
    expected = [(name, data) for name, data in reference(stream) if data]

    for cuts in chunkings(stream, seed):
        assert with_data(fed(stream, cuts, limit=10_000)) == expected, cuts


@pytest.mark.parametrize("end", ENDS)
def test_each_line_end_counts_once_even_across_chunks(end: bytes) -> None:
    stream = b"event: message" + end + b"data: one" + end + end + b"data: two" + end + end

    for cut in range(len(stream)):
        assert fed(stream, [cut]) == [Event(b"message", b"one", 3), Event(b"", b"two", 3)]


def test_a_line_end_split_by_an_empty_chunk_counts_once() -> None:
    decoder = Decoder(LIMIT)

    events = [event for piece in (b"data: x\r", b"", b"\n\r", b"", b"\n") for event in decoder.feed(piece)]

    assert events == [Event(b"", b"x", 1)]


def test_line_separators_of_unicode_are_data() -> None:
    text = "one\u2028two\u2029three\x85four\x0b\x0c\x1c\x1d\x1efive".encode()

    for cuts in chunkings(b"data: " + text + b"\n\n", seed=1):
        assert fed(b"data: " + text + b"\n\n", cuts) == [Event(b"", text, len(text))]


def test_a_byte_order_mark_is_taken_off_only_at_the_beginning() -> None:
    stream = b"\xef\xbb\xbfdata: one\n\n\xef\xbb\xbfdata: two\n\ndata: three\n\n"

    for cuts in chunkings(stream, seed=2):
        assert with_data(fed(stream, cuts)) == [(b"", b"one"), (b"", b"three")]


def test_the_priming_event_and_pings_carry_no_data() -> None:
    stream = b"id: 0\r\ndata: \r\nretry: 500\r\n\r\n: ping - 2026-11-22 14:51:04\r\n\r\n: ping\r\n\r\n"

    for cuts in chunkings(stream, seed=3):
        assert with_data(fed(stream, cuts)) == []


def test_data_of_several_lines_is_joined_and_measured_as_joined() -> None:
    stream = b'data: {"a":\ndata:  1,\ndata: "b": 2}\n\n'

    for cuts in chunkings(stream, seed=4):
        assert fed(stream, cuts) == [Event(b"", b'{"a":\n 1,\n"b": 2}', 17)]


def test_an_event_without_its_blank_line_is_not_dispatched() -> None:
    assert fed(b"data: one\n\ndata: two\n", []) == [Event(b"", b"one", 3)]


def test_the_name_of_one_event_is_not_the_name_of_the_next() -> None:
    assert with_data(fed(b"event: endpoint\n\ndata: x\n\n", [])) == [(b"", b"x")]


@pytest.mark.parametrize("size", [LIMIT - 7, LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 6, 3 * LIMIT])
def test_an_event_is_kept_by_its_size_not_its_chunks(size: int) -> None:
    stream = b"data: " + b"x" * size + b"\r\n\r\ndata: next\r\n\r\n"
    kept = b"x" * size if size <= LIMIT else None

    for cuts in chunkings(stream, seed=size):
        assert fed(stream, cuts) == [Event(b"", kept, size), Event(b"", b"next", 4)], cuts


def test_a_large_event_in_several_lines_is_measured_and_not_kept() -> None:
    stream = b"event: message\n" + b"data: 0123456789\n" * 20 + b"\ndata: next\n\n"

    for cuts in chunkings(stream, seed=5):
        assert fed(stream, cuts) == [Event(b"message", None, 20 * 11 - 1), Event(b"", b"next", 4)]


def test_a_large_first_event_is_seen_behind_a_byte_order_mark() -> None:
    stream = b"\xef\xbb\xbfdata: " + b"x" * 3 * LIMIT + b"\n\n"

    for cuts in chunkings(stream, seed=6):
        assert fed(stream, cuts) == [Event(b"", None, 3 * LIMIT)]


@pytest.mark.parametrize("field", [b":", b"id: ", b"retry: ", b"nonsense"])
def test_a_long_line_without_data_adds_nothing_to_the_next_event(field: bytes) -> None:
    stream = field + b"x" * 5 * LIMIT + b"\n\ndata: next\n\n"

    for cuts in chunkings(stream, seed=7):
        assert fed(stream, cuts) == [Event(b"", b"next", 4)], cuts


def test_a_long_comment_does_not_make_its_event_too_large() -> None:
    stream = b"event: message\n: " + b"x" * 5 * LIMIT + b"\ndata: next\n\n"

    for cuts in chunkings(stream, seed=8):
        assert fed(stream, cuts) == [Event(b"message", b"next", 4)], cuts


def held(decoder: Decoder) -> int:
    """Bytes and entries that a decoder holds."""
    return sum(
        len(value)
        for name in Decoder.__slots__
        if isinstance(value := getattr(decoder, name), (bytes, bytearray, list))
    )


@pytest.mark.parametrize(
    "piece", [b"x", b"data: x\n", b"data:\n", b"data\n", b": x", b"event: x\n", b"event: x", b"\r", b"id"]
)
def test_an_endless_stream_is_never_held(piece: bytes) -> None:
    decoder = Decoder(1024)

    for _ in range(20_000):
        for _ in decoder.feed(piece):
            pass

    assert held(decoder) <= 2 * 1024


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
def test_a_name_beyond_the_limit_is_the_same_however_it_is_cut(step: int) -> None:
    stream = b"event: " + b"n" * 500 + b"\ndata: one\n\n"

    assert fed(stream, list(range(step, len(stream), step)), limit=300) == [Event(b"n" * 64, b"one", 3)]


@pytest.mark.parametrize(
    ("chunk", "request_id", "found"),
    [
        (b'event: message\r\ndata: {"jsonrpc":"2.0","id":7,"result":{}}\r\n\r\n', 7, True),
        (b'data: {"jsonrpc":"2.0","id":"a","result":{"x":1}}\n\n', "a", True),
        (b'data: {"jsonrpc":"2.0","id":7,"result":{}}\n\n', 8, False),
        (b'data: {"jsonrpc":"2.0","id":7,"result":{}}\n\n', "7", False),
        (b'data: {"jsonrpc":"2.0","id":7,"result":{}}\n\n', None, False),
        (b'data: {"jsonrpc":"2.0","id":7,"error":{}}\n\n', 7, False),
        (b'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{}}\n\n', 7, False),
        (b'event: other\ndata: {"jsonrpc":"2.0","id":7,"result":{}}\n\n', 7, False),
        (b'id: 1\ndata: {"jsonrpc":"2.0","id":7,"result":{}}\n\n', 7, False),
        (b'data: {"jsonrpc":"2.0","id":7,"result":{}}\n', 7, False),
        (b'data: {"jsonrpc":"2.0","id":7,"result":{}}\n\ndata: x\n\n', 7, False),
        (b'data: {"jsonrpc":"2.0","id":7,"result":\ndata: {}}\n\n', 7, False),
    ],
)
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_a_chunk_with_one_whole_result_needs_no_decoder(
    chunk: bytes, request_id: int | str | None, found: bool, kind: Callable[[bytes], bytes | memoryview]
) -> None:
    event = next(iter(fed(chunk, [], 256)), Event(b"", b"", 0))

    assert result_size(kind(chunk), request_id) == (event.size if found else None)
