"""A progress bar on standard error: one line that is drawn again on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Final

_WIDTH: Final = 40
#: Seconds between two lines where there is no terminal.
_QUIET_SECONDS: Final = 5.0


class Progress:
    """A bar for one task.

    :param label: what is going on.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._terminal = sys.stderr.isatty()
        self._drawn = 0.0

    def show(self, share: float, note: str = "") -> None:
        """Draw it.

        :param share: what is done, from 0 to 1.
        :param note: stands behind the bar.
        """
        now = time.monotonic()
        if not self._terminal and share < 1 and now - self._drawn < _QUIET_SECONDS:
            return
        self._drawn = now
        full = round(share * _WIDTH)
        line = f"{self._label:<10} [{'#' * full}{'-' * (_WIDTH - full)}] {share:4.0%} {note}"
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if share >= 1 else ""))
        else:
            sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
