"""Write the dashboards: `python -m grafana.generate`.

Needs `grafana-foundation-sdk==0.0.21` (a bare install takes an older generation
with a higher number). The JSON is committed; `tests/stack` generates it again and compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from .boards import overview, pipeline, session, sessions, tools

FOLDER: Final = Path(__file__).parent / "dashboards"

BOARDS: Final = {
    "overview": overview.board,
    "sessions": sessions.board,
    "tools": tools.board,
    "session": session.board,
    "pipeline": pipeline.board,
}
"""File name -> what builds it."""


def generate() -> dict[Path, str]:
    """Return what every file should hold."""
    return {FOLDER / f"{name}.json": build().json() for name, build in BOARDS.items()}


if __name__ == "__main__":
    for path, content in generate().items():
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
