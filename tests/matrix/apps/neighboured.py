"""The app that APP names, in a process that a neighbour of ours has set up first, as its documentation has it."""

import os
from importlib import import_module


def _logfire() -> None:
    import logfire

    logfire.configure(send_to_logfire=False, console=False)
    logfire.instrument_mcp()


def _sentry() -> None:
    import sentry_sdk
    from sentry_sdk.integrations.mcp import MCPIntegration

    dropped: list[object] = []
    sentry_sdk.init(
        "http://key@127.0.0.1:9/1", traces_sample_rate=1.0, integrations=[MCPIntegration()], transport=dropped.append
    )


def _traceloop() -> None:
    from opentelemetry.instrumentation.mcp import McpInstrumentor

    McpInstrumentor().instrument()


def _openinference() -> None:
    from openinference.instrumentation.mcp import MCPInstrumentor

    MCPInstrumentor().instrument()


{"logfire": _logfire, "sentry": _sentry, "traceloop": _traceloop, "openinference": _openinference}[
    os.environ["NEIGHBOUR"]
]()

app = import_module(os.environ["APP"]).app
