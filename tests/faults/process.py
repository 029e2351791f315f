"""The service as it is, in a process that kills itself at a named place and says what it holds when asked.

    python -m tests.faults.process [--die-at PLACE [--die-on N]] ROLE…

SIGUSR1 has it write an event `faults.census` with the number of its tasks, file descriptors and threads, and the names
of what its tasks run.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Literal

from stream_api import cli
from stream_api.ledger.uploads import Ledger
from stream_api.load import claiming, copying, feeder, loader, moving, recorder
from stream_api.storage import cleanup

#: Where a worker can be killed, in the order in which a load comes by: what is called there, and whether before or
#: after the call.
PLACES: Final[dict[str, tuple[Any, str, Literal["before", "after"]]]] = {
    "after the taking": (Ledger, "take", "after"),
    "before a segment": (claiming, "claim_segment", "before"),
    "inside a COPY": (copying, "_binary", "after"),
    "between COPY and commit": (recorder, "commit_segment", "before"),
    "after a commit": (feeder.Lane, "_load", "after"),
    "after the last commit": (Ledger, "complete", "before"),
    "before the move": (moving.Mover, "_into_target", "before"),
    "inside the move": (moving.Mover, "_into_target", "after"),
    "before the commit of the move": (moving, "complete", "after"),
    "between end state and status": (loader.Loader, "_settle", "before"),
    "between status and deletion": (loader, "clean_up_ended", "before"),
    "between deletion and marker": (cleanup, "clear_pending", "before"),
    "before the end of the job": (loader.Loader, "load", "after"),
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--die-at", choices=PLACES)
    parser.add_argument("--die-on", type=int, default=1, metavar="N", help="the Nth time that it comes by")
    options, role = parser.parse_known_args()
    signal.signal(signal.SIGUSR1, _census)
    if options.die_at:
        _arm(options.die_at, options.die_on)
    return cli.main(role)


def _arm(place: str, occurrence: int) -> None:
    owner, name, when = PLACES[place]
    original = getattr(owner, name)
    left = iter(range(occurrence - 1, -1, -1))

    def pass_by() -> None:
        if next(left) == 0:
            _say(event="faults.died", place=place)
            os.kill(os.getpid(), signal.SIGKILL)

    make = _dying_copy if place == "inside a COPY" else _dying_call
    setattr(owner, name, make(original, pass_by, when))


def _dying_call(original: Callable[..., Awaitable[Any]], pass_by: Callable[[], None], when: str) -> Callable[..., Any]:
    @functools.wraps(original)
    async def call(*arguments: Any, **options: Any) -> Any:
        if when == "before":
            pass_by()
        result = await original(*arguments, **options)
        if when == "after":
            pass_by()
        return result

    return call


def _dying_copy(
    original: Callable[..., AsyncIterator[Any]], pass_by: Callable[[], None], when: str
) -> Callable[..., Any]:
    """The source of a COPY: comes by when some of its data is on the way to Postgres."""
    del when

    @functools.wraps(original)
    async def pieces(*arguments: Any) -> AsyncIterator[Any]:
        count = 0
        async for piece in original(*arguments):
            yield piece
            count += 1
            if count == 2:  # the header and one piece of rows
                pass_by()

    return pieces


def _census(*_: object) -> None:
    tasks = asyncio.all_tasks()
    _say(
        event="faults.census",
        tasks=len(tasks),
        fds=len(list(Path("/proc/self/fd").iterdir())),
        threads=threading.active_count(),
        names=sorted(getattr(task.get_coro(), "__qualname__", task.get_name()) for task in tasks),
    )


def _say(**fields: object) -> None:
    # Not by a logger: a signal may interrupt one in the middle of a line, and SIGKILL flushes nothing.
    os.write(1, json.dumps(fields).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
