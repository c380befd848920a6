"""Recorded catalogues of real servers, and what is in them by counting: no parser of the package takes part.

One file for each server of `tests/catalogues/servers.py`, whose lane records them:
letters of prose are masked, and nothing else is changed.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent / "catalogues"
NAMES: Final = sorted(path.name.removesuffix(".json.gz") for path in FOLDER.glob("*.json.gz"))
LABELS: Final = 200
"""Tools that metrics tell apart by name."""
_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True)
class Recording:
    """One answer."""

    way: str
    """How it was asked for: path and revision."""
    content_type: str
    body: bytes
    text: str
    """Its JSON."""

    @property
    def is_modern(self) -> bool:
        return self.way.startswith("modern")


@dataclass(frozen=True)
class Catalogue:
    """What one server lists, in each way of answering that it has."""

    facts: dict[str, Any]
    answers: list[Recording]


def load(name: str) -> Catalogue:
    """Read the recording of one server."""
    stored = json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))
    answers = [
        Recording(entry["way"], entry["content_type"], "".join((before, text, after)).encode(), text)
        for entry in stored.pop("answers")
        for before, after in [entry["frame"]]
        for text in [stored["texts"][entry["text"]]]
    ]
    return Catalogue(stored, answers)


def definitions(text: str) -> list[str]:
    """Cut the definitions of the tools out of an answer, by counting brackets: each as it is written."""
    found: list[str] = []
    depth, start, last, listing = 0, 0, "", False
    for token in _TOKEN.finditer(text):
        sign = token[0]
        if sign in ("[", "{"):
            if sign == "[" and depth == 2:
                listing = last == '"tools"'
            elif listing and depth == 3:
                start = token.start()
            depth += 1
        elif sign in ("]", "}"):
            depth -= 1
            if listing and depth == 3:
                found.append(text[start : token.end()])
            listing = listing and depth > 2
        last = sign
    return found


def name_of(definition: str) -> str:
    return json.loads(definition)["name"]


def bytes_of(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def by_label(tools: Sequence[str]) -> dict[str, int]:
    """The bytes of each definition by the name that metrics give it; those beyond the bound share one."""
    sizes = {name_of(tool): bytes_of([tool]) for tool in tools}
    labelled = dict(list(sizes.items())[:LABELS])
    rest = list(sizes.values())[LABELS:]
    return labelled | ({"_OTHER": sum(rest)} if rest else {})
