"""Clients that are neither agents nor people: registries, scanners, monitors, tests.

On a public server most sessions are theirs. They are known by the name that they give themselves, in ``clientInfo``
or as the first product of their user agent, which is compared whole: part of a name proves nothing, and a wrong entry
hides a customer. Sources: ``docs/sessions.md``. The Inspector is a person's tool, and ``mcp`` is the default of an SDK.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal

Synthetic = Literal["bot", "test"]

BOTS: Final = frozenset({
    "agent-tools.cloud",
    "agentage-mcp-catalog-health",
    "glama",
    "glama-mcp-inspector",
    "golemreach-trust",
    "hultra-link",
    "mcp-reputation-scanner",
    "mcp-rugpull-research",
    "mcp-spec-check",
    "mcpbeat",
    "mcpcensus",
    "mcpdd",
    "mcpgrade",
    "mcpindex-trust",
    "mcpscan",
    "mcpscoringengine",
    "orank-scanner",
    "reliability-bureau-spike",
    "sasame-audit",
    "sentineloracle",
    "smitherybot",
    "spanly-health-monitor",
    "szerverbank-public-agent-observer",
    "wmcp-grader",
    "x402-observatory",
    "x402-observer",
    "yellowmcp-health",
    "yellowmcp-healthchecker",
    "yellowmcp-securityscanner",
})  # fmt: skip
"""Registries, scanners and monitors that nobody here has asked for; in lower case."""
TESTS: Final = frozenset({
    "blackbox exporter",
    "conformance-test-client",
    "datadog",
    "gatus",
    "googlestackdrivermonitoring-uptimechecks",
    "uptime-kuma",
    "uptimerobot",
})  # fmt: skip
"""Checks that somebody has set up for this server, and that can send a POST; in lower case."""
_PROBING: Final = ("-probe", "-prober")
"""How the names of dozens of probes end; ``glimind-probe`` alone was a quarter of all sessions of one server."""


def synthetic_type(name: str | None, user_agent: str | None, tests: Collection[str] = ()) -> Synthetic | None:
    """Return what kind of synthetic client this is; ``None`` = an agent or a person, as far as its names tell.

    Args:
        name: of ``clientInfo``.
        user_agent: the whole header.
        tests: further names of checks, in lower case.
    """
    for each in (name, user_agent and _product(user_agent)):
        each = (each or "").strip().lower()
        if each in TESTS or each in tests:
            return "test"
        if each in BOTS or each.endswith(_PROBING):
            return "bot"
    return None


def _product(user_agent: str) -> str:
    """Return the first product of a user agent; of one that calls itself a browser, what it is ``compatible`` with."""
    _, _, compatible = user_agent.partition("(compatible;")
    return (compatible or user_agent).partition("/")[0].partition("(")[0]
