"""Serves over HTTP the server that a console script would serve over stdio: ``over_http.py PORT SCRIPT [ARGUMENT...]``.

The server object is the script's own, the transport its SDK's; each kind of answer has a path. Runs in the environment
of that server, so nothing but its SDK and uvicorn is imported.
"""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack, suppress
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.middleware.gzip import GZipMiddleware

PATHS = {
    "/json": {"json_response": True},
    "/sse": {"json_response": False},
    "/stateless/json": {"json_response": True, "stateless": True},
    "/stateless/sse": {"json_response": False, "stateless": True},
    "/compressed/json": {"json_response": True, "stateless": True},
}


async def serve(server: Any, port: int) -> None:
    """Serve until the process ends."""
    import uvicorn

    managers = {path: StreamableHTTPSessionManager(app=server, **kind) for path, kind in PATHS.items()}

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        await managers[scope["path"]].handle_request(scope, receive, send)

    compressed = GZipMiddleware(plain)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (compressed if "compressed" in scope["path"] else plain)(scope, receive, send)

    async with AsyncExitStack() as stack:
        for manager in managers.values():
            await stack.enter_async_context(manager.run())
        await uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, lifespan="off", log_level="warning")).serve()


def main() -> None:
    """Run the script, with another transport under its server."""
    port, script, *arguments = sys.argv[1:]
    kinds: list[Any] = [Server]
    with suppress(ImportError):
        kinds.append(import_module("fastmcp.server.low_level").LowLevelServer)
    own = [(kind, kind.__dict__["run"]) for kind in kinds if "run" in kind.__dict__]

    async def run(server: Any, *_: Any, **__: Any) -> None:
        for kind, method in own:
            kind.run = method  # The transport runs the server as well, once for each session.
        await serve(server, int(port))

    for kind, _ in own:
        kind.run = run
    (found,) = entry_points(group="console_scripts", name=script)
    sys.argv = [script, *arguments]
    found.load()()


if __name__ == "__main__":
    main()
