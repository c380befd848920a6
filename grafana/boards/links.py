"""Links between dashboards, and to Jaeger's own pages."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from otel_mcp import semconv as names

from .panels import link

_ALL: Final = "${__url_time_range}&${datasource:queryparam}&${environment:queryparam}"
_FIELDS: Final = "__data.fields"


def tool_details(tool_field: str) -> dict[str, object]:
    """Lead from a row to its tool's dashboard."""
    tool = f"${{{_FIELDS}.{tool_field}:percentencode}}"
    return link("Details of this tool", f"/d/otel-mcp-tools?{_ALL}&var-tool={tool}")


def client_tools(client_field: str) -> dict[str, object]:
    """Lead from a row to what its client gets wrong, by tool."""
    client = f"${{{_FIELDS}.{client_field}:percentencode}}"
    return link("What this client gets wrong", f"/d/otel-mcp-tools?{_ALL}&${{service:queryparam}}&var-client={client}")


def client_sessions(client_field: str) -> dict[str, object]:
    """Lead from a row to how the sessions of its client went."""
    client = f"${{{_FIELDS}.{client_field}:percentencode}}"
    return link("Sessions of this client", f"/d/otel-mcp-sessions?{_ALL}&${{service:queryparam}}&var-client={client}")


def tool_traces(service_field: str, tool_field: str) -> dict[str, object]:
    """Lead from a row to its tool's traces, in Jaeger's own pages."""
    return link("Traces of this tool", _jaeger(service_field, tool_field), new_tab=True)


def failed_tool_traces(service_field: str, tool_field: str) -> dict[str, object]:
    """Lead from a row to its tool's failed traces."""
    url = _jaeger(service_field, tool_field, failed=True)
    return link("Failed traces of this tool", url, new_tab=True)


def wrong_calls(failure_field: str) -> dict[str, object]:
    """Lead from a row to the traces of calls of any tool that failed in the same way."""
    failure = f"${{{_FIELDS}.{failure_field}:percentencode}}"
    tags = quote("{" + f'"{names.FAILURE}":"') + failure + quote('"}')
    return link("Traces of such calls", _search("$service", tags), new_tab=True)


def refused(status_field: str) -> dict[str, object]:
    """Lead from a row to the traces of requests with the same status."""
    status = f"${{{_FIELDS}.{status_field}:percentencode}}"
    tags = quote("{" + f'"{names.HTTP_RESPONSE_STATUS_CODE}":"') + status + quote('"}')
    return link("Traces of such requests", _search("$service", tags), new_tab=True)


def same_choice(board: str) -> str:
    """Return the address of another dashboard with the same variables."""
    return f"/d/otel-mcp-{board}?{_ALL}&${{service:queryparam}}&${{client:queryparam}}"


def session_story(trace_field: str) -> dict[str, object]:
    """Lead from a found trace to the dashboard that shows it."""
    trace_id = f"${{{_FIELDS}.{trace_field}:percentencode}}"
    variables = "${service:queryparam}&${datasource:queryparam}&${traces:queryparam}"
    return link("Show it", f"/d/otel-mcp-session?${{__url_time_range}}&{variables}&var-trace_id={trace_id}")


def whole_session(session_field: str, service_field: str) -> dict[str, object]:
    """Lead from the session of a trace to all its calls; keep the trace."""
    session, service = (f"${{{_FIELDS}.{field}:percentencode}}" for field in (session_field, service_field))
    variables = "${datasource:queryparam}&${traces:queryparam}&${logs:queryparam}&${trace_id:queryparam}"
    url = f"/d/otel-mcp-session?${{__url_time_range}}&{variables}&var-service={service}&var-session_id={session}"
    return link("All of this session", url)


def _jaeger(service_field: str, tool_field: str, *, failed: bool = False) -> str:
    service = f"${{{_FIELDS}.{service_field}:percentencode}}"
    tool = f"${{{_FIELDS}.{tool_field}:percentencode}}"
    error = quote(',"error":"true"') if failed else ""
    tags = quote("{" + f'"{names.GEN_AI_TOOL_NAME}":"') + tool + quote('"') + error + quote("}")
    return _search(service, tags)


def _search(service: str, tags: str) -> str:
    # Jaeger counts in microseconds, Grafana in milliseconds.
    return f"$jaeger/search?service={service}&tags={tags}&start=${{__from}}000&end=${{__to}}000&limit=50"
