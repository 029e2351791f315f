"""The service as the bench runs it when it wants to look inside: `python -m bench.launcher serve --watch FOLDER …`.

It is `stream-api serve` with three things beside it: a ticker in its event loop, names on its threads that the kernel
shows (Python sets none before 3.14), and what each load's channels have held. They are written into FOLDER at the end,
as `ticks.json` and `channels.json`. The role `idle` is an event loop with nothing in it but the ticker: what the
machine alone makes it late.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.ticker import Ticks, ticking
from stream_api import logs
from stream_api.app import serve, work
from stream_api.config import Settings
from stream_api.load.pipeline import Pipeline
from stream_api.load.reader import Hole, OpenRange

_NAMING_SECONDS: Final = 0.2
#: The kernel's names have so many bytes.
_NAME_BYTES: Final = 15


class _Channels:
    """What the channels of every load held at most, and how long those that send into them waited."""

    def __init__(self) -> None:
        self.seen: Final[list[dict[str, Any]]] = []

    def watch(self) -> None:
        """Look at every pipeline of this process when it has run."""
        run = Pipeline.run

        async def watched(pipeline: Pipeline, holes: Sequence[Hole], open_range: OpenRange) -> None:
            try:
                await run(pipeline, holes, open_range)
            finally:
                self.seen.extend(dataclasses.asdict(stats) for stats in pipeline.stats)

        Pipeline.run = watched  # type: ignore[method-assign, assignment]


async def _keep_naming() -> None:
    while True:
        _name_threads()
        await asyncio.sleep(_NAMING_SECONDS)


def _name_threads() -> None:
    for thread in threading.enumerate():
        name = "event-loop" if thread is threading.main_thread() else thread.name
        with contextlib.suppress(OSError):
            Path(f"/proc/self/task/{thread.native_id}/comm").write_text(name[:_NAME_BYTES], encoding="ascii")


async def _idle() -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print("ready", flush=True)
    await stopped.wait()


async def _run(role: str, port: int, folder: Path, *, worker: bool) -> None:
    ticks, channels = Ticks(), _Channels()
    naming = asyncio.create_task(_keep_naming(), name="naming")
    try:
        with ticking(ticks):
            if role == "idle":
                await _idle()
                return
            channels.watch()
            settings = Settings(port=port)
            logs.configure(settings.log_format, settings.log_level)
            await (serve(settings, worker=worker) if role == "serve" else work(settings))
    finally:
        naming.cancel()
        (folder / "channels.json").write_text(json.dumps(channels.seen), encoding="ascii")
        ticks.write(folder / "ticks.json")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.launcher")
    parser.add_argument("role", choices=["serve", "worker", "idle"])
    parser.add_argument("--watch", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--no-worker", action="store_true")
    options = parser.parse_args()
    asyncio.run(_run(options.role, options.port, options.watch, worker=not options.no_worker))


if __name__ == "__main__":
    main()
