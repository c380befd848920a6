"""The spans of one session as a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from rich.text import Text
from rich.tree import Tree

from .otlp_records import SpanRecord
from .otlp_store import TelemetryStore
from .units import seconds
from .views import children_of, session_of

_Children: TypeAlias = "Mapping[str, Sequence[SpanRecord]]"


def span_tree(session_id: str, telemetry: TelemetryStore) -> Tree:
    """Return, for each tool of a session, its first trace, each span beneath its parent."""
    every_span = telemetry.spans()
    traces = {span.trace_id for span in every_span if session_of(span) == session_id}
    spans = [span for span in every_span if span.trace_id in traces]
    spans.sort(key=lambda span: span.start_ns)
    children = children_of(spans)
    known = {span.span_id for span in spans}
    roots = [span for span in spans if span.parent_id not in known]
    tools = {_tool_of(root, children): root for root in reversed(roots)}
    shown = [root for tool, root in sorted(tools.items()) if tool]
    tree = Tree(Text.assemble("Spans with session.id ", (session_id, "bold")))
    for root in shown:
        _grow(tree, root, children)
    if len(roots) > len(shown):
        tree.add(Text(f"and {len(roots) - len(shown)} traces more", "dim"))
    return tree


def _tool_of(span: SpanRecord, children: _Children) -> str:
    if span.attributes.get("mcp.method.name") == "tools/call":
        return str(span.attributes.get("gen_ai.tool.name"))
    return next(filter(None, (_tool_of(c, children) for c in children.get(span.span_id, ()))), "")


def _grow(tree: Tree, span: SpanRecord, children: _Children) -> None:
    error = span.attributes.get("error.type")
    label = Text.assemble(
        (span.name, "bold" if span.kind == "SERVER" else ""),
        (f"  {span.kind}", "cyan"),
        (f"  {seconds(span.duration)}", "dim"),
        (f"  {span.origin.scope}", "dim"),
        (f"  {error}" if error else "", "red"),
    )
    branch = tree.add(label)
    for child in children.get(span.span_id, ()):
        _grow(branch, child, children)
