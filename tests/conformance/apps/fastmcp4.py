"""Everything, served by FastMCP 4 in the mode that MODE names."""

import os

from everything import fill
from fastmcp import Context, FastMCP
from fastmcp.prompts import Message
from prompts import fill_prompts
from wire import counted

mcp = FastMCP("everything")
fill(mcp, Context)
fill_prompts(mcp, Message)


@mcp.completion
async def complete(ref, argument, context):
    return ["paris", "park"]


app = counted(mcp.http_app(stateless_http=os.environ["MODE"] == "stateless"))
