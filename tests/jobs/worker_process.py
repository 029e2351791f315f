"""A worker process: `python -m tests.jobs.worker_process`. Says `started ID`, then waits until it is ended."""

from __future__ import annotations

import asyncio
import signal
import sys
from uuid import UUID

from stream_api.config import Settings
from stream_api.jobs.worker import LoadWorker


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def run(upload_id: UUID) -> None:
    say(f"started {upload_id}")
    await asyncio.Event().wait()


async def main() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: say(f"unretrieved {context}"))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    worker = LoadWorker(Settings(), run)
    await worker.start()
    say("ready")
    await stop.wait()
    await worker.stop()
    say("stopped")


if __name__ == "__main__":
    asyncio.run(main())
