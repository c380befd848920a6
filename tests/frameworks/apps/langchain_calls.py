"""Call tools as an agent of LangChain does by default: its adapters open a transport session for each call.

Runs in an environment of its own. Arguments: the token, then one URL for each call, in turn.
"""

import asyncio
import sys

from langchain_mcp_adapters.client import MultiServerMCPClient


async def main() -> None:
    token, *urls = sys.argv[1:]
    for url in urls:
        headers = {"authorization": f"Bearer {token}"}
        client = MultiServerMCPClient({"shop": {"transport": "streamable_http", "url": url, "headers": headers}})
        tools = await client.get_tools()
        (add,) = [tool for tool in tools if tool.name == "add"]
        await add.ainvoke({"a": 1, "b": 2})


asyncio.run(main())
