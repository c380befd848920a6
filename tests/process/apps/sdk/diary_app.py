"""The shop with a tool that logs."""

from __future__ import annotations

import sys
from pathlib import Path

from app import mcp

sys.path.append(str(Path(__file__).parents[1]))
from diary import write

mcp.tool()(write)
app = mcp.streamable_http_app()
