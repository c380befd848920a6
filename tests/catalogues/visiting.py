"""Serves a real server under `opentelemetry-instrument`, and lists its tools byte by byte, with no library of MCP."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, NamedTuple

from examples.demo.server_process import free_port
from tests.catalogues.servers import Listed
from tests.matrix.environments import python_of
from tests.matrix.serving import STOP_WITHIN, ServerFailed, wait_for
from tests.support.messages import CLIENT_INFO, MODERN, ask, initialize, legacy_headers, notify
from tests.support.servers import end_group

_LAUNCHER: Final = Path(__file__).parent / "apps" / "over_http.py"
WAYS: Final = ("json", "sse", "stateless/json", "stateless/sse", "compressed/json")
_PREFIX: Final = "io.modelcontextprotocol/"


class Answered(NamedTuple):
    """One answer to ``tools/list``, as it was on the wire."""

    way: str
    client: str
    content_type: str
    body: bytes

    @property
    def frame(self) -> tuple[str, str, str]:
        """What stands before the JSON text, that text, and what stands behind it."""
        start, end = self.body.index(b"{"), self.body.rindex(b"}") + 1
        before, text, after = self.body[:start], self.body[start:end], self.body[end:]
        return before.decode(), text.decode(), after.decode()


@contextmanager
def served(server: Listed, environment: Mapping[str, str]) -> Generator[int]:
    """Serve it with telemetry on; the value is its port.

    Raises:
        ServerFailed: it did not start, or the block raised.
    """
    port, python = free_port(), python_of(server.library)
    script = server.script or server.package
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "PYTHONPATH"))}
    with TemporaryFile() as log:
        process = subprocess.Popen(
            [python.with_name("opentelemetry-instrument"), python, _LAUNCHER, str(port), script, *server.arguments],
            env={**inherited, **server.environment, "NO_PROXY": "127.0.0.1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_for(port, process)
            yield port
        except Exception as error:
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()[-15:]
            raise ServerFailed("\n".join([f"{type(error).__name__}: {error}", *lines])) from error
        finally:
            end_group(process, STOP_WITHIN)


def visit(port: int, *, modern: bool) -> list[Answered]:
    """List all tools in each way that the server has, with a client of its own for each; one answer for each page."""
    answers = [answer for way in WAYS for answer in _listed(port, way, f"client-{way.replace('/', '-')}")]
    if modern:
        answers += [answer for way in WAYS[:2] for answer in _listed_modern(port, way, f"modern-{way}")]
    return answers


def _listed(port: int, way: str, client: str) -> list[Answered]:
    headers, _, body = _post(port, way, initialize(name=client))
    version = json.loads(Answered(way, client, "", body).frame[1])["result"]["protocolVersion"]
    own = dict(legacy_headers(headers["mcp-session-id"], version)) if "mcp-session-id" in headers else {}
    _post(port, way, notify("notifications/initialized"), own)
    return _pages(port, way, client, {}, own)


def _listed_modern(port: int, way: str, client: str) -> list[Answered]:
    meta = {CLIENT_INFO: {"name": client, "version": "9"}, f"{_PREFIX}protocolVersion": MODERN}
    own = {"mcp-protocol-version": MODERN, "mcp-method": "tools/list"}
    return _pages(port, way, client, {"_meta": {**meta, f"{_PREFIX}clientCapabilities": {}}}, own)


def _pages(port: int, way: str, client: str, params: Mapping[str, Any], headers: Mapping[str, str]) -> list[Answered]:
    answers: list[Answered] = []
    cursor: dict[str, str] = {}
    for number in count(1):
        received, status, body = _post(port, way, ask("tools/list", number, **params, **cursor), headers)
        answer = Answered(way, client, received.get("content-type", ""), body)
        if status != 200 or b"{" not in body:
            raise RuntimeError(f"{way}, {client}: {status} {body[:500]!r}")
        answers.append(answer)
        following = json.loads(answer.frame[1])["result"].get("nextCursor")
        if not following:
            break
        cursor = {"cursor": following}
    return answers


def _post(
    port: int, way: str, message: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> tuple[dict[str, str], int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    own = {"content-type": "application/json", "accept": "application/json, text/event-stream", **(headers or {})}
    if "compressed" in way:
        own["accept-encoding"] = "gzip"
    try:
        connection.request("POST", f"/{way}", json.dumps(message), own)
        response = connection.getresponse()
        received = {name.lower(): value for name, value in response.getheaders()}
        body = response.read()
        return received, response.status, gzip.decompress(body) if "content-encoding" in received else body
    finally:
        connection.close()
