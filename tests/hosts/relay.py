"""Records what passes between a client and a server, for clients whose HTTP layer cannot be asked.

Bytes are passed on as they come, and read only when the client has gone: neither side is spoken for.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import h11

_PIECE: Final = 65536


@contextmanager
def relayed(url: str, record: Path) -> Generator[str]:
    """A URL that leads to `url`; what passed is added to `record`, one JSON text a line, as the block ends."""
    target = urlsplit(url)
    relay = _Relay((target.hostname or "", target.port or 80))
    try:
        yield target._replace(netloc=f"127.0.0.1:{relay.port}").geturl()
    finally:
        relay.close()
        with record.open("a") as file:
            file.writelines(json.dumps(exchange) + "\n" for exchange in relay.exchanges())


class _Relay:
    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._passed: list[tuple[bytearray, bytearray]] = []
        """What was asked and answered on each connection."""
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def close(self) -> None:
        """End what is still open, and wait until everything that came is here."""
        for each in (self._listener, *self._sockets):
            _shut(each)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def exchanges(self) -> list[dict[str, Any]]:
        """What passed, read as HTTP."""
        return [exchange for asked, answered in self._passed for exchange in _read(bytes(asked), bytes(answered))]

    def _start(self, run: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += (client, server)
                asked, answered = bytearray(), bytearray()
                self._passed.append((asked, answered))
                self._start(_pass_on, client, server, asked)
                self._start(_pass_on, server, client, answered)


def _pass_on(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            kept += piece
            target.sendall(piece)
    _shut(source)
    _shut(target)


def _shut(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)


def _read(asked: bytes, answered: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while asked:
        server = h11.Connection(h11.SERVER)
        server.receive_data(asked)
        request, body = _message(server)
        if request is None:
            break
        client = h11.Connection(h11.CLIENT)
        client.send(request)
        client.send(h11.Data(body))
        client.send(h11.EndOfMessage())
        client.receive_data(answered)
        response, answer = _message(client)
        found.append(
            {
                "method": request.method.decode(),
                "path": request.target.decode().partition("?")[0],
                "headers": _headers(request),
                "body": body.decode(),
                "status": 0 if response is None else response.status_code,
                "answered": {} if response is None else _headers(response),
                "answer": answer.decode(),
            }
        )
        asked, answered = server.trailing_data[0], client.trailing_data[0]
    return found


def _message(connection: h11.Connection) -> tuple[Any, bytes]:
    """A request or response and its body, as far as it came."""
    head, body = None, b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, (h11.Request, h11.Response)):
            head = event
        elif not isinstance(event, h11.InformationalResponse):
            return head, body


def _headers(event: Any) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in event.headers}
