"""A link between server and store that can be slow: a TCP proxy in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress


class Link:
    """Everything takes `delay` seconds each way; 0 = at once."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.delay = 0.0
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self._target)
            carrying = (self._carry(reader, back_writer), self._carry(back_reader, writer))
            await asyncio.gather(*carrying, return_exceptions=True)
        writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Each piece arrives `delay` after it was sent, however many are under way."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def arrive() -> None:
            while True:
                at, data = await under_way.get()
                await asyncio.sleep(max(at - loop.time(), 0))
                writer.write(data)
                if not data:
                    writer.close()
                    return

        arriving = asyncio.create_task(arrive())
        with suppress(OSError):
            while data := await reader.read(65_536):
                under_way.put_nowait((loop.time() + self.delay, data))
        under_way.put_nowait((loop.time() + self.delay, b""))
        await arriving
