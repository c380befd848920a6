"""Which tests run in one process where several share the work, as pytest-xdist asks."""

from __future__ import annotations

import re
from typing import Final

from xdist.scheduler import LoadScopeScheduling

SHARED: Final = re.compile(r"\w+-two-workers")
"""A server that the tests of several files use."""


class Schedule(LoadScopeScheduling):
    """The tests of a file together; of process tests, those that use one server."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if not file.startswith("tests/process/"):
            return file
        if shared := SHARED.search(test):
            return shared[0]
        return file + test.partition("[")[2]
