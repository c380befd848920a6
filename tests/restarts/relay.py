"""A proxy before several replicas that keeps each session at the one that has begun it, as long as that is there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

_ID: Final = re.compile(rb"^mcp-session-id: *([^\r\n]+)\r\n", re.IGNORECASE | re.MULTILINE)
_LENGTH: Final = re.compile(rb"^content-length: *(\d+)\r\n", re.IGNORECASE | re.MULTILINE)
_CONNECTION: Final = re.compile(rb"^connection:[^\r\n]*\r\n", re.IGNORECASE | re.MULTILINE)
_PIECE: Final = 65_536


class Relay:
    """Passes on one request for each connection."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        """The replicas that are up, in the order of their turns."""
        self.astray: set[str] = set()
        """Sessions whose requests go to another replica than their own."""
        self.url = ""
        self._owners: dict[str, int] = {}
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncGenerator[Relay]:
        """Listen on loopback for the time of the block."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _port(self, session_id: str | None) -> int:
        owner = self._owners.get(session_id) if session_id is not None else None
        if owner in self.ports and session_id not in self.astray:
            return owner
        others = [port for port in self.ports if port != owner]
        if not others:
            raise ConnectionRefusedError
        self._turn += 1
        return others[self._turn % len(others)]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._pass_on(reader, writer)
        finally:
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
        named = _ID.search(head)
        port = self._port(named[1].decode() if named else None)
        upstream, sink = await asyncio.open_connection("127.0.0.1", port)
        sink.write(_CONNECTION.sub(b"", head)[:-2] + b"connection: close\r\n\r\n" + body)
        try:
            answer = await upstream.readuntil(b"\r\n\r\n")
            given = _ID.search(answer)
            if named is None and given is not None:
                self._owners[given[1].decode()] = port
            writer.write(answer)
            while piece := await upstream.read(_PIECE):
                writer.write(piece)
                await writer.drain()
        finally:
            sink.close()
