"""Prometheus's own judgement of a file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.stack.lane import builds


def assert_promtool_takes(path: Path, *command: str) -> None:
    """With the promtool that the lane has built, or Debian's; where there is none, the lane proves it."""
    built = builds.promtool().path
    promtool = str(built) if built.exists() else shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on this machine")
    done = subprocess.run([promtool, *command, path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
