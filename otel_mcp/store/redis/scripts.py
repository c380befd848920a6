"""The Lua scripts, each with the digest by which servers know it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Final

from otel_mcp.store.base import ABANDONED, GRACE


@dataclass(frozen=True, slots=True)
class Script:
    """One script; `sha` is what EVALSHA wants."""

    source: str
    sha: str


def _read(*names: str) -> Script:
    folder = files("otel_mcp.store.redis") / "lua"
    source = "\n".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in names)
    if names[0] == "session":
        source = f"local GRACE, ABANDONED = {GRACE * 1000:.0f}, {ABANDONED * 1000:.0f}\n{source}"
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


FLUSH: Final = _read("session", "flush")
CLAIM: Final = _read("session", "claim")
SAVE: Final = _read("session", "save")
SETTLE: Final = _read("session", "settle")
RECALL: Final = _read("session", "recall")
DELETE: Final = _read("session", "delete")
AGREE: Final = _read("agree")
BIND: Final = _read("session", "bind")
SUCCEED: Final = _read("succeed")
TIME: Final = _read("time")
TOUCH: Final = _read("touch")
FORGET: Final = _read("forget")
