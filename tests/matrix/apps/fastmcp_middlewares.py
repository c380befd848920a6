"""A server of FastMCP, 3 or 4, behind the middlewares that come with it."""

import os

from fastmcp.server.middleware.caching import ResponseCachingMiddleware
from fastmcp.server.middleware.error_handling import ErrorHandlingMiddleware
from fastmcp.server.middleware.logging import LoggingMiddleware
from fastmcp.server.middleware.rate_limiting import RateLimitingMiddleware
from fastmcp.server.middleware.timing import TimingMiddleware
from fastmcp_app import mcp

NEVER = 1e-9
"""Requests a second that come to be allowed again."""

for middleware in (
    ErrorHandlingMiddleware(),
    RateLimitingMiddleware(NEVER, burst_capacity=int(os.environ["ALLOWED"]), global_limit=True),
    TimingMiddleware(),
    LoggingMiddleware(),
    ResponseCachingMiddleware(),
):
    mcp.add_middleware(middleware)

app = mcp.http_app(stateless_http=os.environ["MODE"] == "stateless")
