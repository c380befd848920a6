"""The table with the libraries of this interpreter, or of all that are supported.

``python -m tests.outcomes [word ...]``, ``python -m tests.outcomes everywhere``.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import warnings

from tests.outcomes.servers import servers
from tests.outcomes.table import eras, problems, run


def main(words: list[str]) -> int:
    """Returns the number of requests of which something is wrong."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    wrong = 0
    for name in servers():
        for era in eras(name):
            if not all(word in f"{name} {era}" for word in words):
                continue
            seen = asyncio.run(run(name, era))
            found = [problem for each in seen for problem in problems(name, era, each)]
            print(f"{'FAIL' if found else 'ok  '} {name} {era}", *found, sep="\n     ", flush=True)
            wrong += len(found)
    return wrong


def everywhere() -> int:
    """Returns the number of environments in which something is wrong."""
    from tests.matrix.cells import FASTMCP_2, FASTMCP_3, FASTMCP_4_1, MCP_1_9, MCP_1_12, MCP_1_30
    from tests.matrix.environments import ROOT, python_of

    wrong = 0
    for library in (MCP_1_30, MCP_1_12, MCP_1_9, FASTMCP_4_1, FASTMCP_3, FASTMCP_2):
        print(f"== {library.name}", flush=True)
        wrong += bool(subprocess.run([str(python_of(library)), "-m", "tests.outcomes"], cwd=ROOT).returncode)
    return wrong


if __name__ == "__main__":
    sys.exit(min(everywhere() if sys.argv[1:] == ["everywhere"] else main(sys.argv[1:]), 1))
