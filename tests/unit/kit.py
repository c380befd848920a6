"""Names that have moved to `tests.support`."""

from __future__ import annotations

from otel_mcp.types import ASGIApp as App  # noqa: F401
from otel_mcp.types import Message, Receive, Send  # noqa: F401
from tests.support.answers import *  # noqa: F403
from tests.support.asgi import *  # noqa: F403
from tests.support.messages import *  # noqa: F403
from tests.support.providers import *  # noqa: F403
