"""The servers: which package and version, on which SDK, and what makes each list its tools without what it is for.

All of them are public packages, and run as their console scripts would; nothing they could connect to is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.matrix.cells import Library

NOWHERE: Final = "http://127.0.0.1:9"
_SDK_2: Final = "mcp == 2.3.0"
_SDK_1: Final = "mcp == 1.30.0"
_FASTMCP_4: Final = (_SDK_2, "fastmcp == 4.2.3")
_FASTMCP_3: Final = (_SDK_1, "fastmcp == 3.4.11")
_OLD: Final = ("pydantic < 2.12",)
"""What the SDKs before 1.21 still run with."""
_REFERENCE: Final = "https://github.com/modelcontextprotocol/servers"
_AWS: Final = "https://github.com/awslabs/mcp"


@dataclass(frozen=True)
class Listed:
    """One server."""

    package: str
    version: str
    pins: tuple[str, ...]
    """Its SDK, as it was recorded."""
    source: str
    script: str = ""
    """Its console script, where that has another name than the package."""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    quick: bool = False
    """Installed in seconds: one of those that run with every change."""

    @property
    def name(self) -> str:
        return self.package.removeprefix("awslabs.")

    @property
    def library(self) -> Library:
        return Library(f"catalogue-{self.name}", (f"{self.package} == {self.version}", *self.pins))


SERVERS: Final = (
    Listed("mcp-server-time", "2026.10.19", (_SDK_2,), f"{_REFERENCE}/tree/main/src/time"),
    Listed("mcp-server-git", "2026.10.19", (_SDK_2,), f"{_REFERENCE}/tree/main/src/git", quick=True),
    Listed("mcp-server-fetch", "2026.10.24", (_SDK_2,), f"{_REFERENCE}/tree/main/src/fetch"),
    Listed(
        "mcp-server-sqlite",
        "2025.4.25",
        ("mcp == 1.9.4", *_OLD),
        "https://github.com/modelcontextprotocol/servers-archived/tree/main/src/sqlite",
        arguments=("--db-path", "/tmp/otel-mcp-catalogues.db"),
        quick=True,
    ),
    Listed("duckduckgo-mcp-server", "0.7.0", (_SDK_2,), "https://github.com/nickclyde/duckduckgo-mcp-server"),
    Listed(
        "mcp-atlassian",
        "0.23.1",
        _FASTMCP_3,
        "https://github.com/sooperset/mcp-atlassian",
        environment={
            f"{product}_{name}": value
            for product in ("JIRA", "CONFLUENCE")
            for name, value in (("URL", NOWHERE), ("USERNAME", "nobody"), ("API_TOKEN", "none"))
        },
    ),
    Listed("awslabs.aws-documentation-mcp-server", "1.2.3", (_SDK_2,), _AWS),
    Listed("awslabs.dynamodb-mcp-server", "2.1.8", ("mcp == 1.26.0", "fastmcp == 3.4.11"), _AWS),
    Listed("awslabs.aws-healthomics-mcp-server", "0.1.5", (_SDK_2,), _AWS, environment={"AWS_REGION": "us-east-1"}),
    Listed("redis-mcp-server", "0.5.1", (_SDK_1,), "https://github.com/redis/mcp-redis"),
    Listed(
        "excel-mcp-server", "2.2.2", (_SDK_2,), "https://github.com/haris-musa/excel-mcp-server", arguments=("stdio",)
    ),
    Listed(
        "mcp-clickhouse",
        "0.7.0",
        (_SDK_2, "fastmcp == 4.0.11"),
        "https://github.com/ClickHouse/mcp-clickhouse",
        environment={"CLICKHOUSE_HOST": "127.0.0.1", "CLICKHOUSE_USER": "nobody", "CLICKHOUSE_PASSWORD": "none"},
    ),
    Listed(
        "mcp-obsidian",
        "0.2.3",
        ("mcp == 1.12.4", *_OLD),
        "https://github.com/MarkusPfundstein/mcp-obsidian",
        environment={"OBSIDIAN_API_KEY": "none"},
    ),
    Listed(
        "office-word-mcp-server",
        "1.1.11",
        _FASTMCP_4,
        "https://github.com/GongRzhe/Office-Word-MCP-Server",
        "word_mcp_server",
    ),
    Listed(
        "office-powerpoint-mcp-server",
        "2.0.7",
        ("mcp == 1.20.0", *_OLD),
        "https://github.com/GongRzhe/Office-PowerPoint-MCP-Server",
        "ppt_mcp_server",
    ),
    Listed(
        "plane-mcp-server",
        "0.3.5",
        ("mcp == 1.28.1", "fastmcp == 3.2.0"),
        "https://github.com/makeplane/plane-mcp-server",
        arguments=("stdio",),
        environment={"PLANE_API_KEY": "none", "PLANE_WORKSPACE_SLUG": "none"},
    ),
    Listed(
        "ha-mcp",
        "3.5.1",
        _FASTMCP_4,
        "https://github.com/homeassistant-ai/ha-mcp",
        environment={"HOMEASSISTANT_URL": NOWHERE, "HOMEASSISTANT_TOKEN": "none"},
    ),
    Listed("mcp-nixos", "3.1.0", _FASTMCP_4, "https://github.com/utensils/mcp-nixos", quick=True),
    Listed("wikipedia-mcp", "2.0.1", _FASTMCP_4, "https://github.com/rudra-ravi/wikipedia-mcp"),
    Listed(
        "opensearch-mcp-server-py",
        "0.12.0",
        (_SDK_2,),
        "https://github.com/opensearch-project/opensearch-mcp-server-py",
        environment={"OPENSEARCH_URL": NOWHERE, "OPENSEARCH_NO_AUTH": "true"},
    ),
    Listed("workspace-mcp", "2.2.1", _FASTMCP_4, "https://github.com/taylorwilsdon/google_workspace_mcp"),
    Listed("google-analytics-mcp", "2.11.6", (_SDK_2,), "https://github.com/surendranb/google-analytics-mcp"),
    Listed(
        "wb-mcp-server",
        "2.6.1",
        (_SDK_1,),
        "https://github.com/DeviceIngineering/wb-mcp-server",
        "wb-mcp",
        environment={"WB_API_TOKEN": "none"},
        quick=True,
    ),
    Listed("arxiv-mcp-server", "0.8.2", (_SDK_1,), "https://github.com/blazickjp/arxiv-mcp-server"),
    Listed(
        "mcp-neo4j-cypher",
        "0.6.0",
        ("mcp == 1.22.0", "fastmcp == 2.13.3"),
        "https://github.com/neo4j-contrib/mcp-neo4j",
    ),
    Listed(
        "elevenlabs-mcp",
        "0.12.2",
        (_SDK_1,),
        "https://github.com/elevenlabs/elevenlabs-mcp",
        environment={"ELEVENLABS_API_KEY": "none"},
    ),
    Listed("fxhoudinimcp", "2.28.2", (_SDK_2,), "https://github.com/healkeiser/fxhoudinimcp"),
)
