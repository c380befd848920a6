"""The pages about the stack: their YAML parses, their links lead somewhere, their settings exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from otel_mcp.settings import Settings

from .lane.paths import ROOT

PAGES = [
    ROOT / "docs" / "backends.md",
    ROOT / "docs" / "kubernetes.md",
    *sorted((ROOT / "docs" / "runbooks").glob("*.md")),
]
FILES = [*PAGES, ROOT / "docker-compose.yml", *sorted((ROOT / "collector" / "config").glob("*.yaml"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_yaml_of_a_page_parses(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        assert list(yaml.safe_load_all(block))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("http") and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_settings_that_are_named_exist(path: Path) -> None:
    named = {name.lower() for name in re.findall(r"OTEL_PYTHON_MCP_([A-Z_]+)", path.read_text(encoding="utf-8"))}
    assert named - set(Settings.model_fields) == set()
