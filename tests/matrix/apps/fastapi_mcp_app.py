"""fastapi-mcp: routes of FastAPI as tools."""

from fastapi import FastAPI
from fastapi_mcp import FastApiMCP
from opentelemetry import trace

app = FastAPI()
tracer = trace.get_tracer("app")


@app.get("/add", operation_id="add")
async def add(a: int = 0, b: int = 0) -> int:
    with tracer.start_as_current_span("query"):
        return a + b


@app.get("/fail", operation_id="fail")
async def fail() -> str:
    raise KeyError("secret")


FastApiMCP(app).mount_http()
