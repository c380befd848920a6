"""Which servers are run in which mode, and what they need installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OURS: Final = ("uvicorn", "opentelemetry-distro", "opentelemetry-exporter-otlp-proto-http")


@dataclass(frozen=True)
class Library:
    """A version of a server library, and what goes with it."""

    name: str
    requirements: tuple[str, ...]


MCP_1_30: Final = Library("mcp-1.30", ("mcp == 1.30.0",))
MCP_1_12: Final = Library("mcp-1.12", ("mcp == 1.12.4", "pydantic < 2.12"))
MCP_1_9: Final = Library("mcp-1.9", ("mcp == 1.9.4", "pydantic < 2.12"))
FASTMCP_3: Final = Library("fastmcp-3", ("fastmcp == 3.4.10",))
FASTMCP_2: Final = Library("fastmcp-2", ("fastmcp == 2.14.7",))
FASTAPI_MCP: Final = Library("fastapi-mcp", ("fastapi-mcp == 0.4.0", "mcp < 2", "fastapi"))
HANDWRITTEN: Final = Library("handwritten", ("fastapi",))


@dataclass(frozen=True)
class Cell:
    """One server in one mode."""

    library: Library
    app: str
    """Module in ``apps/``."""
    mode: str = "stateful"
    nested: bool = True
    """What the tool opens lies beneath its call."""

    def __str__(self) -> str:
        return f"{self.library.name} {self.app} {self.mode}"


CELLS: Final = (
    *(Cell(MCP_1_30, "sdk1", mode) for mode in ("stateful", "stateless", "json", "sse")),
    *(Cell(MCP_1_12, "sdk1", mode) for mode in ("stateful", "stateless", "sse")),
    *(Cell(MCP_1_9, "sdk1", mode) for mode in ("stateful", "sse")),
    *(Cell(FASTMCP_3, "fastmcp23", mode) for mode in ("stateful", "stateless", "sse")),
    *(Cell(FASTMCP_2, "fastmcp23", mode) for mode in ("stateful", "stateless", "sse")),
    # It calls its tools through HTTP again, without any trace headers.
    Cell(FASTAPI_MCP, "fastapi_mcp_app", nested=False),
    Cell(HANDWRITTEN, "fastapi_route"),
    Cell(HANDWRITTEN, "bare_asgi"),
)
