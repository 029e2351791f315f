"""`make demo`: a large file through the whole service, with real servers and a real memory limit.

Starts the stack of `stream-api dev`, runs `serve` as a process of its own under a hard limit of 512 MB, generates a
file, uploads it with curl, follows the load, counts the rows, checks that the object is gone, and stops. What happens
is told on standard error; the last line of standard output is one JSON object. Megabytes are 2^20 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
from pydantic import SecretStr

from bench.command import end_with_json
from bench.generate import Summary, generate, positive, share
from bench.progress import Progress
from bench.service import Service, ServiceFailed
from bench.stand import say
from stream_api.config import MIB, Settings
from stream_api.dev.limits import memory_limit
from stream_api.dev.server import ServerFailed
from stream_api.dev.stack import STORES, Stack
from stream_api.ledger.migrate import migrate

LIMIT_BYTES: Final = 512 * MIB
_POLL_SECONDS: Final = 0.25
#: A load that makes no progress for this long has failed, whatever its status says.
_STALL_SECONDS: Final = 300.0
#: How long after `completed` the object may still be there: it is deleted after the status is written.
_DELETION_SECONDS: Final = 30.0

#: The names of the last line, in its order; null where the demo did not get that far.
KEYS: Final = (
    "uploadId", "status", "bytes", "rowsInFile", "rowsProcessed", "rowsFailed", "rowsInTable", "uploadSeconds",
    "uploadMegabytesPerSecond", "processSeconds", "rowsPerSecond", "peakRssMegabytes", "memoryLimitMegabytes",
    "objectDeleted",
)  # fmt: skip


class DemoFailed(Exception):
    """Something is not as it must be."""


def run(rows: int, *, invalid: float, store: str, seed: int, result: dict[str, Any]) -> None:
    """Run the demo.

    :param result: gets the values of `KEYS` as they come to be known.
    :raises DemoFailed: when something is not as it must be.
    :raises ServiceFailed: when the service does not run as it must.
    """
    with _temporary_folder() as folder:
        say(f"starting PostgreSQL, Valkey and {store}")
        name = next(each for each in STORES if each == store)
        with Stack(folder / "stack", store=name) as stack, memory_limit(LIMIT_BYTES) as limit:
            asyncio.run(migrate(Settings(database_url=SecretStr(stack.postgres.dsn))))
            file, summary = folder / "events.csv", Summary()
            _generate(file, rows, seed, invalid, summary)
            result.update(bytes=summary.size_bytes, rowsInFile=summary.rows)
            if limit.limit_bytes is not None:
                result["memoryLimitMegabytes"] = limit.limit_bytes // MIB
            say(f"memory limit of the service: {limit.description}")
            service = Service(stack.folder / "service.log", stack.environment(), limit)
            try:
                service.wait_until_healthy()
                _upload(file, service, result)
                status = _follow(service, result)
                _check(stack, status, summary, result)
                service.sample()
            except BaseException:
                say(service.log_end())
                with contextlib.suppress(ServiceFailed):
                    service.stop()
                raise
            finally:
                if service.peak_rss_bytes is not None:
                    result["peakRssMegabytes"] = round(service.peak_rss_bytes / MIB, 1)
            service.stop()
            if service.peak_group_bytes is not None:
                say(f"peak of the control group: {service.peak_group_bytes / MIB:.1f} MB, kernel buffers included")


def _generate(file: Path, rows: int, seed: int, invalid: float, summary: Summary) -> None:
    bar = Progress("generate")
    with file.open("wb") as target:
        for piece in generate(rows, seed=seed, invalid=invalid, summary=summary):
            target.write(piece)
            bar.show(summary.rows / max(rows, 1), f"{summary.size_bytes / MIB:,.0f} MB")


def _upload(file: Path, service: Service, result: dict[str, Any]) -> None:
    program = shutil.which("curl")
    if program is None:
        msg = "curl is not installed"
        raise DemoFailed(msg)
    url = f"http://127.0.0.1:{service.port}/upload"
    say(f"curl -X POST -F file=@{file.name} {url}")
    # Its own progress bar on a terminal; the answer, then two figures on a line of their own.
    talk = ["--progress-bar"] if sys.stderr.isatty() else ["--silent", "--show-error"]
    command = [program, *talk, "--noproxy", "*", "-X", "POST", "-F", f"file=@{file};type=text/csv", url]
    command += ["--write-out", "\n%{http_code} %{time_total}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    service.sample()
    if done.returncode:
        msg = f"curl ended with exit code {done.returncode}"
        raise DemoFailed(msg)
    body, _, figures = done.stdout.rpartition("\n")
    code, seconds = figures.split()
    if code != "202":
        msg = f"the upload was answered by {code}: {body}"
        raise DemoFailed(msg)
    answer = json.loads(body)
    taken = float(seconds)
    result.update(
        uploadId=answer["uploadId"],
        status=answer["status"],
        uploadSeconds=round(taken, 3),
        uploadMegabytesPerSecond=round(result["bytes"] / MIB / taken, 1),
    )
    say(f"202 after {taken:.1f} s: {answer['uploadId']}")


def _follow(service: Service, result: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of the load and return the last status."""
    bar = Progress("load")
    began = changed = time.monotonic()
    seen = -1.0
    while True:
        service.sample()
        status: dict[str, Any] = service.get(f"/upload/{result['uploadId']}/status")
        result.update(status=status["status"], rowsProcessed=status["rowsProcessed"], rowsFailed=status["rowsFailed"])
        now = time.monotonic()
        speed = (status["rowsProcessed"] + status["rowsFailed"]) / max(now - began, 0.1)
        bar.show(status["progress"], f"{status['rowsProcessed']:,} rows, {speed:,.0f} rows/s")
        if status["status"] not in {"uploaded", "processing"}:
            break
        if status["progress"] != seen:
            seen, changed = status["progress"], now
        if now - changed > _STALL_SECONDS:
            msg = f"the load made no progress for {_STALL_SECONDS:.0f} s"
            raise DemoFailed(msg)
        time.sleep(_POLL_SECONDS)
    if status["status"] != "completed":
        msg = f"the load ended as {status['status']}: {status.get('error')}"
        raise DemoFailed(msg)
    taken = (_time(status["completedAt"]) - _time(status["startedAt"])).total_seconds()
    result["processSeconds"] = round(taken, 3)
    result["rowsPerSecond"] = round(status["rowsProcessed"] / taken) if taken else None
    return status


def _check(stack: Stack, status: dict[str, Any], summary: Summary, result: dict[str, Any]) -> None:
    """Compare what the service says with the file, the table and the bucket."""
    result["rowsInTable"] = asyncio.run(_count(stack.postgres.dsn))
    deadline = time.monotonic() + _DELETION_SECONDS
    while True:
        left = [key for key in stack.store.keys(stack.bucket) if key.startswith(f"uploads/{result['uploadId']}/data")]
        result["objectDeleted"] = not left
        if not left or time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    refused = {kind: count for kind, count in summary.invalid.items() if count}
    problems = [
        f"{what} is {found}, not {expected}"
        for what, found, expected in (
            ("rowsProcessed", status["rowsProcessed"], summary.valid),
            ("rowsFailed", status["rowsFailed"], summary.rows - summary.valid),
            ("rowsInTable", result["rowsInTable"], summary.valid),
            ("rejected", {kind: count for kind, count in status["rejected"].items() if count}, refused),
            ("progress", status["progress"], 1),
            ("what is left in the bucket", left, []),
        )
        if found != expected
    ]
    if problems:
        raise DemoFailed("; ".join(problems))


async def _count(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM webhook_events"))
    finally:
        await connection.close()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="stream-api-demo-"))
    folder.chmod(0o755)  # As root, Postgres runs as another user.
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description="A large file through the service.")
    parser.add_argument("--rows", type=positive, default=1_000_000)
    parser.add_argument("--invalid", type=share, default=0.0, metavar="SHARE", help="share of invalid rows, 0 to 1")
    parser.add_argument("--store", choices=list(STORES), default="seaweedfs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result: dict[str, Any] = dict.fromkeys(KEYS)

    def work() -> None:
        run(options.rows, invalid=options.invalid, store=options.store, seed=options.seed, result=result)

    failures = (DemoFailed, ServiceFailed, ServerFailed)
    return end_with_json(result, work, failures=failures, say=lambda reason: say(f"demo: {reason}"))


if __name__ == "__main__":
    sys.exit(main())
