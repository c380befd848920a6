"""A proxy of FastMCP, 3 or 4, before the server that BACKEND names."""

import os

try:
    from fastmcp.server import create_proxy
except ImportError:
    from fastmcp import FastMCP

    create_proxy = FastMCP.as_proxy

app = create_proxy(os.environ["BACKEND"], name="proxy").http_app(stateless_http=os.environ["MODE"] == "stateless")
