"""The service level objective that dashboards and alerts share.

The alert rules in `grafana/alerts` record the ratios; changing the objective here and there is one
change, which `tests/stack` holds together.
"""

from __future__ import annotations

from typing import Final

OBJECTIVE: Final = 0.99
"""Share of tool calls that shall work, over 30 days."""
BUDGET: Final = 1 - OBJECTIVE
PAGE_BURN: Final = 14.4
"""At this rate, 2 % of the month's budget go in an hour."""
TICKET_BURN: Final = 6.0
"""At this rate, 5 % of the month's budget go in six hours."""
TOOL_FAILING: Final = 0.1
"""Share of one tool's calls from which an alert names it."""
TOOL_SLOW: Final = 5.0
"""Seconds of one tool's 95th percentile, likewise."""
WINDOWS: Final = ("5m", "30m", "1h", "6h")


def error_ratio(window: str) -> str:
    """Return the recorded series of the share of failed tool calls."""
    return f"mcp:tool_calls:error_ratio_rate{window}"
