"""How long tests wait for what must come."""

from __future__ import annotations

from typing import Final

#: Longer than a machine needs that is busy with ten other things: it ends what hangs and decides nothing else. A wait
#: whose length is what a test shows names its own.
PATIENCE_SECONDS: Final = 120.0
