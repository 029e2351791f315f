"""`stream-api`, and `python -m stream_api`."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def main() -> int:
    """Run the command and return its exit code.

    As process 1 of a container it would not see SIGTERM until there is a handler, and imports take most of a second.
    """
    signal.signal(signal.SIGTERM, _end)
    from stream_api import cli  # noqa: PLC0415

    return cli.main()


def _end(number: int, _: object) -> NoReturn:
    # As a shell says it of a process that a signal has ended.
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
