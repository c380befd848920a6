"""As little of an HTTP client as it takes: what it costs itself must not blur what is measured."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    status: int
    headers: dict[bytes, bytes]
    """By lower-case name."""
    body: bytes


class Connection:
    """One kept-alive connection to loopback; opened again where the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Send a POST and read the whole answer.

        Raises:
            OSError, EOFError, ValueError: there was none.
        """
        if self._streams is None or self._streams[0].at_eof():
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        given = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\ncontent-length: {len(body)}\r\n{given}\r\n"
        writer.write(head.encode() + body)
        try:
            return await self._answer(reader)
        except BaseException:
            self.close()
            raise

    async def _answer(self, reader: asyncio.StreamReader) -> Answer:
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        pairs = [line.split(b":", 1) for line in lines[1:] if line]
        headers = {name.strip().lower(): value.strip() for name, value in pairs}
        if headers.get(b"transfer-encoding") == b"chunked":
            body = await self._chunks(reader)
        else:
            body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
        return Answer(int(lines[0].split(b" ")[1]), headers, body)

    async def _chunks(self, reader: asyncio.StreamReader) -> bytes:
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return body

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
