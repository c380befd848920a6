"""What the replays share with the unit tests: providers in memory, runtimes, and nothing of the environment."""

# pyright: reportUnusedImport=false

from tests.unit.conftest import (  # noqa: F401
    bare_environment,
    make_runtime,
    no_failures,
    quick_entry_points,
    runtime,
    telemetry,
    time_to_end,
)
