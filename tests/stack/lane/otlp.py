"""Hand-made spans, to see what the Collector makes of them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.request import Request, urlopen

SERVER: Final = 2
ERROR: Final = 2


@dataclass
class Span:
    """A span of one's own."""

    name: str = "tools/call handmade"
    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))
    span_id: str = field(default_factory=lambda: secrets.token_hex(8))
    parent_id: str = ""
    seconds: float = 0.01
    failed: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    scope: str = "lane"
    error: str = ""
    """Text of its status, and of the exception that it recorded."""

    def encoded(self) -> dict[str, Any]:
        """Return it as OTLP's JSON."""
        end = time.time_ns()
        return {
            "traceId": self.trace_id,
            "spanId": self.span_id,
            "parentSpanId": self.parent_id,
            "name": self.name,
            "kind": SERVER,
            "startTimeUnixNano": str(end - int(self.seconds * 1e9)),
            "endTimeUnixNano": str(end),
            "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in self.attributes.items()],
            "status": {"code": ERROR, "message": self.error} if self.failed else {},
            "events": [self._exception(end)] if self.error else [],
        }

    def _exception(self, at: int) -> dict[str, Any]:
        exception = {"exception.type": "KeyError", "exception.message": self.error, "exception.stacktrace": self.error}
        attributes = [{"key": key, "value": {"stringValue": value}} for key, value in exception.items()]
        return {"name": "exception", "timeUnixNano": str(at), "attributes": attributes}


def send(collector: str, service: str, *spans: Span) -> None:
    """Send spans to a Collector in one request."""
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    scopes = [{"scope": {"name": span.scope}, "spans": [span.encoded()]} for span in spans]
    body = json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": scopes}]}).encode()
    request = Request(f"{collector}/v1/traces", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=10) as response:
        response.read()
