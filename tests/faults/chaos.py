"""Random faults over loads: `python -m tests.faults.chaos --runs 200 --seed 7`.

A run is one upload and one to four faults at random moments; afterwards everything is compared with the file. What
faults a run has, and when, depends on the seed and its number alone: `--seed 7 --only 31` repeats run 31. Before the
others there are runs with one long outage each, whose numbers are negative.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final
from uuid import uuid4

import aiohttp

from tests.conftest import Bucket
from tests.faults.files import File, make_file
from tests.faults.kinds import KINDS, LONG, Target
from tests.faults.servers import Servers, running_servers
from tests.faults.stand import Process, open_stand
from tests.webhooks.conftest import Receiver, receiving

#: Settings of the processes: loads of many segments.
VALUES: Final[dict[str, object]] = {
    "segment_bytes": 256 * 1024,
    "batch_bytes": 128 * 1024,
    "part_bytes": 5 * 1024 * 1024,
}
_WORKERS: Final = 2
#: Faults begin within this time after the upload has begun.
_SPAN_SECONDS: Final = 5.0
#: The upload takes less, and the load more than this.
_LONG_AT_SECONDS: Final = 2.0
#: How much more a process may hold after many runs than after its first: connections that are kept come and go.
_MORE: Final = {"tasks": 8, "fds": 24, "threads": 12}
#: How long a process may take to be at rest after a run.
_CALM_SECONDS: Final = 15.0
#: What outlives a run: nobody waits for more.
_END_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Fault:
    """A fault to come.

    :param at_seconds: after the beginning of the run.
    :param seed: of everything else that is random about it.
    """

    kind: str
    at_seconds: float
    seed: str


def plan(seed: int, number: int) -> list[Fault]:
    """The faults of a run; of one with a negative number, a long outage while the file is loaded."""
    if number < 0:
        return [Fault(list(LONG)[number], _LONG_AT_SECONDS, f"{seed}:{number}:0")]
    rng = random.Random(f"{seed}:{number}")
    kinds = list(KINDS)
    return [
        Fault(rng.choice(kinds), rng.uniform(0, _SPAN_SECONDS), f"{seed}:{number}:{index}")
        for index in range(rng.randint(1, 4))
    ]


def asked(seed: int, number: int) -> dict[str, str]:
    """What the upload of a run asks of its load."""
    rng = random.Random(f"{seed}:{number}:asked")
    if number < 0 or rng.random() < 0.5:
        return {}
    return {
        "mode": rng.choice(["append", "atomic", "replace"]),
        "conflict": rng.choice(["error", "skip", "update"]),
    }


@dataclass
class Chaos:
    """Runs, one after another, on one set of servers and processes.

    :param rows: of each file.
    """

    target: Target
    seed: int
    rows: int
    receiver: Receiver
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    #: Loads that were taken more than once.
    interrupted: int = 0
    first: dict[Process, dict[str, Any]] = field(default_factory=dict)
    most: Counter[str] = field(default_factory=Counter)

    async def run(self, number: int) -> None:
        """One run.

        :raises AssertionError: something was lost, doubled, wrong or left.
        :raises TimeoutError: something did not end.
        """
        stand = self.target.stand
        self.target.upload, self.target.cancelled = asyncio.get_running_loop().create_future(), False
        self.receiver.received.clear()
        await stand.database.value("TRUNCATE webhook_events")
        file = make_file(self.rows, seed=number % 2)
        async with asyncio.timeout(_END_SECONDS):
            async with asyncio.TaskGroup() as group:
                group.create_task(self._upload(number, file))
                for fault in plan(self.seed, number):
                    group.create_task(self._break(fault))
            upload_id = self.target.upload.result()
            own = await stand.data_key(upload_id)

            def is_stray(key: str) -> bool:
                # What a killed API was receiving, and multipart uploads that were begun without the API hearing of it,
                # are for the janitor, after an hour.
                return "/data-" in key and key != own

            status = await stand.ended(self.target.client, upload_id)
            check = stand.check_loaded
            if status["status"] == "cancelled" and self.target.cancelled:
                check = stand.check_cancelled
            assert await check(self.target.client, upload_id, file, kept=is_stray) == status
        self._check_webhooks(status)
        self.ends[status["status"]] += 1
        self.interrupted += status["run"] > 1
        await self._check_leaks()

    def _check_webhooks(self, status: dict[str, Any]) -> None:
        """The end state was told of at least once, and always by the same name."""
        assert status["webhook"]["state"] == "delivered", status["webhook"]
        assert len({received.headers["webhook-id"] for received in self.receiver.received}) == 1
        for received in self.receiver.received:
            told = json.loads(received.body)
            assert (told["uploadId"], told["status"]) == (status["uploadId"], status["status"])
            assert told["rowsProcessed"] == status["rowsProcessed"]

    async def _break(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_seconds)
        self.faults[fault.kind] += 1
        await (KINDS | LONG)[fault.kind](self.target, random.Random(fault.seed))

    async def _upload(self, number: int, file: File) -> None:
        """Upload as a client that does not give up: with the same key until there is an answer."""
        key = f"chaos-{self.seed}-{number}-{time.time_ns()}"
        while True:
            try:
                async with self.target.stand.http.post(
                    f"{self.target.api.url}/upload", data=self._form(number, file), headers={"Idempotency-Key": key}
                ) as answer:
                    body: dict[str, Any] = await answer.json(content_type=None)
                    if answer.status == 202:
                        self.target.upload.set_result(body["uploadId"])
                        return
                    assert answer.status in {409, 503}, body
            except (aiohttp.ClientError, ConnectionError):
                pass  # No answer: the same again.
            await asyncio.sleep(0.2)

    def _form(self, number: int, file: File) -> aiohttp.FormData:
        form = aiohttp.FormData({"callbackUrl": f"{self.receiver.url}/ended"} | asked(self.seed, number))
        form.add_field("file", io.BytesIO(file.data), filename="chaos.csv", content_type="text/csv")
        return form

    async def _check_leaks(self) -> None:
        for process in (self.target.api, *self.target.workers):
            first = self.first.setdefault(process, await process.census())
            census = await self._calm(process, first)
            for what, more in _MORE.items():
                self.most[what] = max(self.most[what], census[what] - first[what])
                assert census[what] - first[what] <= more, f"{process.log}: {first}, and now {census}"

    async def _calm(self, process: Process, first: dict[str, Any]) -> dict[str, Any]:
        """The census once it is within its limits, or after some seconds: what a fault has begun may take as long."""
        deadline = time.monotonic() + _CALM_SECONDS
        while True:
            census = await process.census()
            if all(census[what] - first[what] <= more for what, more in _MORE.items()) or time.monotonic() > deadline:
                return census
            await asyncio.sleep(0.2)


async def _prepare(servers: Servers) -> Servers:
    """The same servers without anything of earlier runs."""
    bucket = Bucket(servers.store, f"chaos-{uuid4().hex}")
    await asyncio.to_thread(bucket.store.create_bucket, bucket.name)
    await asyncio.to_thread(
        servers.postgres.execute, "TRUNCATE webhook_events, stream_api.uploads, stream_api.segments"
    )
    return replace(servers, bucket=bucket)


async def run_chaos(servers: Servers, options: argparse.Namespace) -> list[int]:
    """Run and print what happens; the numbers of the runs that failed."""
    numbers = deque([options.only] if options.only is not None else range(-len(LONG), options.runs))
    failed: list[int] = []
    faults, ends, most, seconds, interrupted = Counter[str](), Counter[str](), Counter[str](), list[float](), 0
    while numbers:
        # After a failure everything begins anew: the next run is not to suffer for it.
        servers = await _prepare(servers)
        folder = Path(tempfile.mkdtemp(prefix="stream-api-chaos-"))
        async with receiving() as receiver, open_stand(servers.settings, servers.bucket, folder) as stand:
            chaos = Chaos(Target(stand, servers, VALUES), options.seed, options.rows, receiver)
            await stand.flush()
            await chaos.target.start(workers=_WORKERS)
            while numbers:
                number = numbers.popleft()
                planned = ", ".join(f"{fault.kind} at {fault.at_seconds:.2f}" for fault in plan(options.seed, number))
                planned += "".join(f", {name}={value}" for name, value in asked(options.seed, number).items())
                began = time.monotonic()
                try:
                    await chaos.run(number)
                except Exception:  # noqa: BLE001 - whatever it is, it is counted and the others are run
                    failed.append(number)
                    print(f"run {number} FAILED: {planned}; logs in {folder}", flush=True)
                    traceback.print_exc()
                    break
                seconds.append(time.monotonic() - began)
                print(f"run {number}: {seconds[-1]:.1f} s: {planned}", flush=True)
            else:
                await stand.check_stopped()
                shutil.rmtree(folder)
            faults += chaos.faults
            ends += chaos.ends
            interrupted += chaos.interrupted
            most |= chaos.most
    more = ", ".join(f"{most[what]} {what}" for what in _MORE)
    print(f"""
seed {options.seed}: {len(seconds) + len(failed)} runs of {options.rows} rows, failed: {failed or "none"}
seconds of a run: median {median(seconds or [0]):.1f}, longest {max(seconds, default=0):.1f}
{faults.total()} faults: {", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))}
ends: {", ".join(f"{count} {state}" for state, count in ends.items())}; taken more than once: {interrupted}
the most that a process held in addition to what it held after its first run: {more}""")
    return failed


def main() -> int:
    """The command; fails when a run did."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description="Random faults over loads.")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rows", type=int, default=200_000, help="of each file")
    parser.add_argument("--seed", type=int, help="a random one unless given")
    parser.add_argument("--only", type=int, metavar="RUN", help="repeat this run alone")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.randrange(1_000_000)
    print(f"seed {options.seed}", flush=True)
    with running_servers() as servers:
        return 1 if asyncio.run(run_chaos(servers, options)) else 0


if __name__ == "__main__":
    sys.exit(main())
