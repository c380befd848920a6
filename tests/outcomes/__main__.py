"""The table with the libraries of this interpreter: ``python -m tests.outcomes [word ...]``."""

from __future__ import annotations

import asyncio
import logging
import sys

from tests.outcomes.servers import servers
from tests.outcomes.table import eras, problems, run


def main() -> int:
    """Returns the number of requests of which something is wrong."""
    logging.disable(logging.CRITICAL)
    wrong = 0
    for name in servers():
        for era in eras(name):
            if not all(word in f"{name} {era}" for word in sys.argv[1:]):
                continue
            seen = asyncio.run(run(name, era))
            found = [problem for each in seen for problem in problems(name, era, each)]
            print(f"{'FAIL' if found else 'ok  '} {name} {era}", *found, sep="\n     ", flush=True)
            wrong += len(found)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))
