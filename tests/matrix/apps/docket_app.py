"""A server of FastMCP, 3 or 4, one of whose tools runs as a background task: any replica's worker may take it."""

import asyncio
import os
from importlib.util import find_spec

from fastmcp import FastMCP
from opentelemetry import trace

mcp = FastMCP("docket")
tracer = trace.get_tracer("app")
if find_spec("fastmcp_tasks"):  # Since 4; before it was part of FastMCP.
    from fastmcp_tasks import TasksExtension

    mcp.add_extension(TasksExtension())


@mcp.tool(task=True)
async def build(seconds: float, fail: bool = False) -> str:
    with tracer.start_as_current_span("building"):
        await asyncio.sleep(seconds)
    if fail:
        raise ValueError("no timber")
    return "built"


app = mcp.http_app(stateless_http=os.environ["MODE"] == "stateless")
