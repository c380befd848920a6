"""Which servers are run in which mode, and what they need installed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PYPROJECT: Final = Path(__file__).resolve().parents[2] / "pyproject.toml"
_FLOOR: Final = re.compile(r'"([\w-]+(?:\[[\w,]+\])?) >= ([\w.]+)"')
OURS: Final = ("uvicorn", "opentelemetry-distro", "opentelemetry-exporter-otlp-proto-http")


@dataclass(frozen=True)
class Library:
    """A version of a server library, and what goes with it."""

    name: str
    requirements: tuple[str, ...] = ()
    """None = what the tests themselves run in."""


CURRENT: Final = Library("current")
MCP_1_30: Final = Library("mcp-1.30", ("mcp == 1.30.0",))
MCP_1_12: Final = Library("mcp-1.12", ("mcp == 1.12.4", "pydantic < 2.12"))
MCP_1_9: Final = Library("mcp-1.9", ("mcp == 1.9.4", "pydantic < 2.12"))
FASTMCP_4_1: Final = Library("fastmcp-4.1", ("fastmcp == 4.1.7",))
FASTMCP_3: Final = Library("fastmcp-3", ("fastmcp == 3.4.11",))
FASTMCP_2: Final = Library("fastmcp-2", ("fastmcp == 2.14.7",))
FASTAPI_MCP: Final = Library("fastapi-mcp", ("fastapi-mcp == 0.4.0", "mcp < 2", "fastapi"))
HANDWRITTEN: Final = Library("handwritten", ("fastapi",))


def _floors() -> tuple[str, ...]:
    """The lowest version of everything that the package itself says it works with, but of FastMCP.

    FastMCP is not in need of the SDK's floor, and brings one of its own.
    """
    text = _PYPROJECT.read_text()
    declared = text[text.index("dependencies = [") : text.index("cli = [")]
    # The newest patch of a lowest version; of what is no release yet there is only the one.
    return tuple(
        f"{name} == {floor}" + ("" if re.search("[a-z]", floor) else ".*")
        for name, floor in _FLOOR.findall(declared)
        if name != "fastmcp"
    )


LOWEST: Final = Library("lowest", _floors())
SERVERS: Final = Library(
    "servers",
    (
        "mcp == 2.3.0",
        "fastmcp == 4.2.3",
        "fastapi",
        "litestar == 2.25.0",
        "granian == 2.8.9",
        "hypercorn == 0.18.0",
        "gunicorn == 27.0.1",
        "uvicorn-worker == 0.4.0",
    ),
)


@dataclass(frozen=True)
class WebServer:
    """What carries the app."""

    name: str
    command: str
    """``{app}`` and ``{port}`` stand for those."""


UVICORN: Final = WebServer("uvicorn", "uvicorn {app} --port={port} --log-level=warning")
GUNICORN: Final = WebServer("gunicorn-uvicorn", "gunicorn {app} -b 127.0.0.1:{port} -k uvicorn_worker.UvicornWorker")
GUNICORN_ASGI: Final = WebServer("gunicorn-asgi", "gunicorn {app} -b 127.0.0.1:{port} -k asgi")
HYPERCORN: Final = WebServer("hypercorn", "hypercorn {app} --bind 127.0.0.1:{port}")
GRANIAN: Final = WebServer("granian", "granian {app} --interface asgi --host 127.0.0.1 --port {port} --log-level error")
WEB_SERVERS: Final = (GUNICORN, GUNICORN_ASGI, HYPERCORN, GRANIAN)


@dataclass(frozen=True)
class Cell:
    """One server in one mode."""

    library: Library
    app: str
    """Module in ``apps/``."""
    mode: str = "stateful"
    nested: bool = True
    """What the tool opens lies beneath its call."""
    server: WebServer = UVICORN
    environment: tuple[tuple[str, str], ...] = ()
    """Variables that the app reads."""

    def __str__(self) -> str:
        options = "".join(f" {value}" for _, value in self.environment)
        return f"{self.library.name} {self.app} {self.mode} {self.server.name}{options}"


CELLS: Final = (
    *(Cell(MCP_1_30, "sdk1", mode) for mode in ("stateful", "stateless", "json", "sse")),
    *(Cell(MCP_1_12, "sdk1", mode) for mode in ("stateful", "stateless", "sse")),
    *(Cell(MCP_1_9, "sdk1", mode) for mode in ("stateful", "sse")),
    # Before 4.2 the SDK lists the tools again for each call, and a mounted server opens a server span of its own.
    *(Cell(FASTMCP_4_1, "fastmcp_app", mode) for mode in ("stateful", "stateless", "sse")),
    *(Cell(FASTMCP_3, "fastmcp_app", mode) for mode in ("stateful", "stateless", "sse")),
    *(Cell(FASTMCP_2, "fastmcp_app", mode) for mode in ("stateful", "stateless", "sse")),
    # It calls its tools through HTTP again, without any trace headers.
    Cell(FASTAPI_MCP, "fastapi_mcp_app", nested=False),
    Cell(HANDWRITTEN, "fastapi_route"),
    Cell(HANDWRITTEN, "bare_asgi"),
    Cell(LOWEST, "sdk1", "sse"),
    *(Cell(SERVERS, app, server=server) for server in WEB_SERVERS for app in ("sdk2", "fastmcp_app", "fastapi_route")),
    *(Cell(SERVERS, "sdk2", "sse", server=server) for server in WEB_SERVERS),
    *(Cell(SERVERS, "litestar_app", server=server) for server in (UVICORN, *WEB_SERVERS)),
    *(Cell(SERVERS, "bare_asgi", server=server) for server in WEB_SERVERS),
)
