"""The two servers: the same command, the same OpenTelemetry, one of them without otel_mcp."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import httpx

from tests.support.uvicorn import ROOT, Uvicorn

WARNINGS: Final = ("Redis cannot be used", "Redis denies access")
RECOVERY: Final = "Redis can be used again"
_LOGGING: Final = ("--no-access-log", f"--log-config={ROOT / 'tests/faults/logging.json'}")
"""The line at recovery is for information, so that is logged, too."""


class Side(Uvicorn):
    """One server as a process."""

    def __init__(self, folder: Path, otlp: str, redis_url: str, *, observed: bool) -> None:
        self.observed = observed
        self.service = "with" if observed else "without"
        self._read = 0
        environment = {
            "OTEL_SERVICE_NAME": self.service,
            "OTEL_PYTHON_MCP_REDIS_URL": redis_url,
            "OTEL_PYTHON_MCP_MAX_NEW_SESSIONS": "100000",
            # As many spans on either side: the other one has none of HTTP, and exporting is what p99 is made of.
            "OTEL_PYTHON_MCP_HTTP_SPAN": "off",
        }
        log = folder / f"{self.service}.log"
        super().__init__("tests.faults.app:app", log, otlp, environment, *_LOGGING, observed=observed)

    def export(self) -> None:
        """Have it export its metrics."""
        httpx.post(f"{self.url}/export", trust_env=False).raise_for_status()

    def new_lines(self) -> list[str]:
        """What it has logged since this was asked last."""
        text = self.log.read_text(errors="replace")
        lines, self._read = text[self._read :].splitlines(), len(text)
        return lines
