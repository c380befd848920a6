"""Fuzz one target: ``python -m tests.hostile.fuzz_one NAME [libFuzzer options]``."""

from __future__ import annotations

import sys
from typing import Any, cast

import atheris  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

with cast("Any", atheris).instrument_imports(include=["otel_mcp"]):
    from tests.hostile.targets import SEEDS, TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv[1]]
    for seed in SEEDS:
        target(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()
