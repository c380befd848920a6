"""The server of the demo: a shop's back office, written with the official MCP SDK.

Nothing in it knows of otel_mcp. What the demo shows of it comes from starting it under
`opentelemetry-instrument`; the only telemetry it makes itself is the spans of its database
queries, through the OpenTelemetry API, as any application may.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.request_state import RequestStateSecurity
from opentelemetry import trace
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from .courier import book_courier
from .orders import open_database
from .stocktaking import Stocktaking

logger = logging.getLogger("back-office")
tracer = trace.get_tracer(__name__)
database = open_database()
lock = threading.Lock()  # the SDK runs plain functions in threads
# A question may be asked by one process and its answer brought to another, so they seal its state with one key.
state = RequestStateSecurity(keys=[os.environ.get("BACK_OFFICE_KEY", "of all processes, and of this demo alone")])
mcp = MCPServer(
    "back-office", version="1.4.0", log_level="WARNING", extensions=[Stocktaking()], request_state_security=state
)
mcp.tool()(book_courier)


class PaymentDeclined(ToolError):
    """The bank refuses; the SDK passes the text of a ToolError on to the client."""


def query(statement: str, *parameters: str) -> list[Any]:
    """Ask the database, in a span of the statement without its parameters."""
    attributes = {"db.system.name": "sqlite", "db.query.text": statement}
    kind = trace.SpanKind.CLIENT
    with tracer.start_as_current_span("db.query", kind=kind, attributes=attributes), lock:
        return database.execute(statement, parameters).fetchall()


@mcp.tool()
def stock_level(sku: str) -> int:
    """Tell how many pieces of an article are in stock."""
    rows = query("SELECT quantity FROM stock WHERE sku = ?", sku)
    return rows[0][0] if rows else 0


@mcp.tool()
async def find_orders(customer: str) -> list[str]:
    """List a customer's orders, each with what is in stock of its article."""
    with tracer.start_as_current_span("orders.search"):
        orders = query("SELECT id, sku FROM orders WHERE customer = ?", customer)
    lines: list[str] = []
    for order, sku in orders:
        rows = query("SELECT quantity FROM stock WHERE sku = ?", sku)
        lines.append(f"{order}: {sku}, {rows[0][0]} in stock")
    return lines


@mcp.tool()
async def charge_card(order: str, card: str) -> str:
    """Charge a card for an order; the bank of this demo declines every card."""
    logger.warning("the bank has declined a card")
    raise PaymentDeclined(f"card {card} was declined for order {order}")


@mcp.tool()
async def import_catalogue(pages: int, ctx: Context[Any, Any]) -> str:
    """Import a supplier's catalogue, telling the client how far it has come."""
    for page in range(1, pages + 1):
        await asyncio.sleep(0.2)
        await ctx.report_progress(page, pages, f"page {page} of {pages}")
    return f"{pages} pages imported"


@mcp.tool()
async def forecast_demand(weeks: int) -> str:
    """Work out what will be sold, which takes a while."""
    await asyncio.sleep(3)
    return f"demand for {weeks} weeks: steady"


@mcp.tool()
async def take_stock(aisles: int) -> str:
    """Count what is in the aisles of the warehouse; for clients that can follow a task it is one."""
    await asyncio.sleep(aisles / 2)
    return f"{aisles} aisles counted"


@mcp.resource("shop://returns-policy")
def returns_policy() -> str:
    """What customers may send back."""
    return "Anything, within 30 days."


@mcp.prompt()
def apology(order: str) -> str:
    """Ask for a letter to a customer whose order is late."""
    return f"Write two friendly sentences to the customer of order {order}, which is late."


@mcp.custom_route("/health", methods=["GET"])
async def health(request: Request) -> Response:
    """Answer a load balancer; this is no MCP traffic and stays out of the telemetry."""
    return PlainTextResponse("ok")


# Stateless, because the SDK keeps a stateful session in one process and this server has two. One that has a single
# process may keep its sessions, and can then ask clients of the revisions up to 2025-11-25 something as well.
app = mcp.streamable_http_app(stateless_http="BACK_OFFICE_KEEPS_SESSIONS" not in os.environ)
