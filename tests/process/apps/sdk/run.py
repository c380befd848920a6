"""Let the SDK run its server."""

from __future__ import annotations

import os

from app import mcp, options

if __name__ == "__main__":
    mcp.run(transport="streamable-http", host="127.0.0.1", port=int(os.environ["PORT"]), **options)
