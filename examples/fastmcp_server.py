"""A server with FastMCP, observed without a line of code for it.

opentelemetry-instrument uvicorn examples.fastmcp_server:app
opentelemetry-instrument python examples/fastmcp_server.py
opentelemetry-instrument fastmcp run examples/fastmcp_server.py --transport http
"""

from __future__ import annotations

from fastmcp import Context, FastMCP

mcp = FastMCP("words", version="1.0.0")


@mcp.tool
async def count_words(texts: list[str], ctx: Context) -> dict[str, int]:
    """Count the words of several texts together, reporting progress after each."""
    counts: dict[str, int] = {}
    for done, text in enumerate(texts, start=1):
        for word in text.lower().split():
            counts[word] = counts.get(word, 0) + 1
        await ctx.report_progress(done, len(texts))
    return counts


app = mcp.http_app()

if __name__ == "__main__":
    mcp.run(transport="http", host="127.0.0.1", port=8000)
