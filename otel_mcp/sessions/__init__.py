"""Sessions: what is known of them, where it is kept, and how it gets there.

`state` is the public document, `delta` what the request path hands over,
`service` the facade. A store (`memory`, or ``redis_*`` with the scripts in
``lua/``) keeps sessions; `coalescer`, `flusher` and `background` bring deltas
there off the path of requests.
"""

from otel_mcp.sessions.state import SessionState, ToolCall

__all__ = ["SessionState", "ToolCall"]
