"""A courier is booked with the customer's help: two questions that a person answers in the middle of a tool call.

Up to 2025-11-25 the server asks while the call is under way. Since 2026-07-28 it answers with its question, and the
client calls again with the answer; the SDK does either, as the client speaks it.
"""

from __future__ import annotations

from typing import Annotated

from mcp.server.mcpserver.resolve import Elicit, Resolve
from pydantic import BaseModel


class Address(BaseModel):
    """Where an order is to be brought."""

    address: str


class Consent(BaseModel):
    """Whether the customer pays for that."""

    agreed: bool


async def ask_address(order: str) -> Elicit[Address]:
    """Ask where to."""
    return Elicit(f"Where shall order {order} be brought?", Address)


async def ask_consent(to: Annotated[Address, Resolve(ask_address)]) -> Elicit[Consent]:
    """Ask whether the price is right, which depends on where."""
    return Elicit(f"The courier to {to.address} costs 9 EUR. Agreed?", Consent)


async def book_courier(
    order: str,
    to: Annotated[Address, Resolve(ask_address)],
    consent: Annotated[Consent, Resolve(ask_consent)],
) -> str:
    """Have an order brought by courier, once the customer has said where to and agreed to the price."""
    return f"order {order} is on its way" if consent.agreed else f"order {order} waits for the post"
