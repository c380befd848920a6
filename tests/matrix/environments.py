"""Virtual environments of the libraries, kept outside the repository between runs."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock
from typing import Final

from tests.matrix.cells import OURS, Library

_current: set[Library] = set()
_one_at_a_time: Final = Lock()
ROOT: Final = Path(__file__).resolve().parents[2]


def python_of(library: Library) -> Path:
    """The interpreter of a library's environment; made where there is none for these requirements yet."""
    if not library.requirements:
        return Path(sys.executable)
    with _one_at_a_time:
        return _made(library)


def _made(library: Library) -> Path:
    requirements = (*library.requirements, *OURS)
    pyproject = (ROOT / "pyproject.toml").read_text()
    key = sha256("\n".join((*requirements, sys.version, pyproject)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otel-mcp" / "matrix"
    folder = cache / f"{library.name}-{key}"
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([*pip, str(ROOT), *requirements], check=True)
        (folder / "ready").touch()
    if library not in _current:
        # The code under test is that of this checkout, in every environment.
        subprocess.run([*pip, "--no-deps", "--force-reinstall", str(_wheel())], check=True)
        _current.add(library)
    return python


@cache
def _wheel() -> Path:
    """The package as it is now, built once for all environments."""
    folder = Path(mkdtemp(prefix="wheel-"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel
