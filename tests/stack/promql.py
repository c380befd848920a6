"""PromQL, parsed: which series an expression asks for, with which labels, over which ranges."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import promql_parser


@dataclass
class Asked:
    """What an expression asks of Prometheus."""

    selectors: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    """Each series, or pattern of names, with the labels that select among it."""
    grouped_by: set[str] = field(default_factory=set)


def ask(expr: str) -> Asked:
    """Parse an expression.

    Raises:
        ValueError: It is none.
    """
    asked = Asked()
    for node in _walk(promql_parser.parse(expr)):
        if isinstance(node, promql_parser.VectorSelector):
            asked.selectors.append(_selector(node))
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            asked.grouped_by.update(node.modifier.labels)
    return asked


def ranges(expr: str) -> set[str]:
    """Return the ranges in an expression as they are written, variables and all."""
    return set(re.findall(r"\[([^\]:]+)[\]:]", expr))


def _selector(node: Any) -> tuple[str, frozenset[str]]:
    matchers = {matcher.name: matcher.value for matcher in node.matchers.matchers}
    name = node.name or matchers.get("__name__", "")
    return name, frozenset(matchers.keys() - {"__name__"})


def _walk(node: Any) -> Iterator[Any]:
    yield node
    for attribute in ("lhs", "rhs", "expr", "vector_selector", "param"):
        child = getattr(node, attribute, None)
        if child is not None and type(child).__module__.startswith("promql_parser"):
            yield from _walk(child)
    for child in getattr(node, "args", None) or ():
        yield from _walk(child)
