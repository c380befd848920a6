"""Which neighbours there are: proxies, middlewares, adapters, transports, and other libraries that watch."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.matrix.cells import CURRENT, FASTMCP_3, HANDWRITTEN, LOWEST, MCP_1_30, Cell, Library
from tests.matrix.neighbours import Neighbour
from tests.matrix.visits import CALLS, FAILING, GOOD, LEGACY, MODERN, UNKNOWN, WRONG

_BESIDE: Final = (
    "logfire == 5.4.0",
    "sentry-sdk == 2.75.0",
    "opentelemetry-instrumentation-mcp == 0.62.4",
    "openinference-instrumentation-mcp == 2.0.13",
)
BESIDE_1: Final = Library("beside-mcp-1.30", ("mcp == 1.30.0", "fastmcp == 3.4.11", *_BESIDE))
BESIDE_2: Final = Library(
    "beside-mcp-2.3",
    (
        "mcp == 2.3.0",
        "fastmcp == 4.2.3",
        *_BESIDE,
    ),
)
DJANGO: Final = Library("django", ("django == 5.2.19", "django-mcp-server == 0.5.7", "mcp == 1.30.0"))


def _cell(library: Library, app: str, mode: str = "stateful", **environment: str) -> Cell:
    return Cell(library, app, mode, environment=tuple(environment.items()))


_BOTH: Final = (LEGACY, MODERN)
_BY_HAND: Final = (GOOD, GOOD, replace(FAILING, failure="tool"), UNKNOWN, GOOD)
_RELAYED: Final = (GOOD, GOOD, replace(FAILING, failure="tool"), UNKNOWN, replace(WRONG, failure="tool"), GOOD)
_LIMITED: Final = (*CALLS, replace(GOOD, failure="refused"))
_USER: Final = (("authorization", "Bearer alice"),)
_STRANGER: Final = (("authorization", "Bearer mallory"),)

ROWS: Final = (
    Neighbour(_cell(CURRENT, "fastmcp_proxy"), _BOTH, _RELAYED, backend=Cell(CURRENT, "sdk2")),
    Neighbour(_cell(CURRENT, "fastmcp_proxy", "stateless"), _BOTH, _RELAYED, backend=Cell(CURRENT, "sdk2")),
    Neighbour(_cell(FASTMCP_3, "fastmcp_proxy"), (LEGACY,), _RELAYED, backend=Cell(CURRENT, "sdk2")),
    Neighbour(_cell(CURRENT, "fastmcp_middlewares", ALLOWED="8"), (LEGACY,), _LIMITED),
    Neighbour(_cell(CURRENT, "fastmcp_middlewares", ALLOWED="7"), (MODERN,), _LIMITED),
    Neighbour(_cell(FASTMCP_3, "fastmcp_middlewares", ALLOWED="9"), (LEGACY,), _LIMITED),
    *(
        Neighbour(_cell(library, "neighboured", NEIGHBOUR=name, APP=app), revisions)
        for name in ("logfire", "sentry", "traceloop", "openinference")
        for library, app, revisions in (
            (BESIDE_2, "sdk2", _BOTH),
            (BESIDE_2, "fastmcp_app", _BOTH),
            (BESIDE_1, "sdk1", (LEGACY,)),
            (BESIDE_1, "fastmcp_app", (LEGACY,)),
        )
        # Traceloop's ends the process where it meets the SDK 2.x, with us or without.
        if (name, library) != ("traceloop", BESIDE_2)
    ),
    Neighbour(_cell(LOWEST, "sdk1")),
    Neighbour(_cell(LOWEST, "bare_asgi", "json"), (LEGACY,), _BY_HAND),
    Neighbour(_cell(DJANGO, "django_app")),
    Neighbour(_cell(CURRENT, "adapted", "stateless", APP="sdk2"), _BOTH),
    Neighbour(_cell(CURRENT, "adapted", "stateless", APP="fastmcp_app"), _BOTH),
    Neighbour(_cell(FASTMCP_3, "adapted", "stateless", APP="fastmcp_app")),
    Neighbour(_cell(MCP_1_30, "adapted", "stateless", APP="sdk1")),
    Neighbour(_cell(CURRENT, "custom_transport", APP="sdk2")),
    Neighbour(_cell(CURRENT, "custom_transport", APP="fastmcp_app")),
    Neighbour(_cell(FASTMCP_3, "custom_transport", APP="fastmcp_app")),
    Neighbour(_cell(MCP_1_30, "custom_transport", APP="sdk1")),
    *(
        Neighbour(
            _cell(CURRENT, "starlette_wrapped", mode, WRAPPED=wrapped, APP=app),
            revisions,
            calls,
            headers=user,
            stranger=stranger,
        )
        for wrapped, user, stranger in (("authentication", _USER, _STRANGER), ("gzip", (), ()))
        for app, mode, revisions, calls in (
            ("sdk2", "stateful", _BOTH, CALLS),
            ("fastmcp_app", "stateless", _BOTH, CALLS),
            ("fastapi_route", "json", (LEGACY,), _BY_HAND),
        )
    ),
    Neighbour(
        _cell(HANDWRITTEN, "starlette_wrapped", "json", WRAPPED="gzip", APP="bare_asgi"),
        (LEGACY,),
        _BY_HAND,
    ),
)
