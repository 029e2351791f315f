"""A command that ends with one line of JSON, whatever becomes of it."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import Any


def end_with_json(
    result: dict[str, Any],
    work: Callable[[], None],
    *,
    failures: tuple[type[Exception], ...],
    say: Callable[[str], None],
) -> int:
    """Do the work, print what it has put into `result` by then, and return the exit code.

    :param failures: what the work raises where somebody has to be told, without a traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        work()
    except failures as exc:
        say(str(exc))
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        print(json.dumps(result), flush=True)
    return 0


def _terminate(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)
