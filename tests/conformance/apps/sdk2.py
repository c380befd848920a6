"""Everything, served by the MCP SDK 2.x in the mode that MODE names."""

import os
from typing import Any

from everything import fill
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp_types import Completion, EmptyResult, SetLevelRequestParams, SubscribeRequestParams, UnsubscribeRequestParams
from prompts import fill_prompts
from wire import counted

mcp = MCPServer("everything", log_level="WARNING")
fill(mcp, Context)
fill_prompts(mcp, UserMessage)


@mcp.completion()
async def complete(ref: Any, argument: Any, context: Any) -> Completion:
    return Completion(values=["paris", "park"], total=2, has_more=False)


@mcp.tool()
async def test_trigger_tool_change(ctx: Context) -> str:
    await ctx.notify_tools_changed()
    return "changed"


@mcp.tool()
async def test_trigger_prompt_change(ctx: Context) -> str:
    await ctx.notify_prompts_changed()
    return "changed"


async def accept(ctx: Any, params: Any) -> EmptyResult:
    return EmptyResult()


# The high-level class has no way to take these.
for method, params in {
    "logging/setLevel": SetLevelRequestParams,
    "resources/subscribe": SubscribeRequestParams,
    "resources/unsubscribe": UnsubscribeRequestParams,
}.items():
    mcp._lowlevel_server.add_request_handler(method, params, accept)

app = counted(mcp.streamable_http_app(stateless_http=os.environ["MODE"] == "stateless"))
