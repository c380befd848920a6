"""How long what is over stays, in memory and in Redis alike. Seconds."""

from __future__ import annotations

from typing import Final

GRACE: Final = 600.0
"""That an ended document stays, for what was in flight."""
ABANDONED: Final = 7 * 86_400.0
"""That ends wait to be reported where no process of the service runs any more; then nothing of it is left."""
