"""Workers that are killed or frozen, at every place of a load and at any moment."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.faults.files import make_file
from tests.faults.process import PLACES
from tests.faults.stand import Stand
from tests.support.service import until

pytestmark = pytest.mark.timeout(400)

FILE = make_file(20_000)
#: Far enough into the file that something is committed, where a place comes by more than once.
_OCCURRENCES = {
    "inside a COPY": 3,
    "between COPY and commit": 5,
    "after a commit": 6,
}


@pytest.mark.parametrize(
    "asked", [{}, {"conflict": "update"}, {"mode": "atomic"}, {"mode": "replace", "conflict": "skip"}], ids=str
)
async def test_a_worker_killed_at_every_place(stand: Stand, asked: dict[str, str]) -> None:
    """One load, taken over again and again: each worker dies at the next place, the last one lives."""
    client = await stand.start_api()
    upload_id = (await client.upload(FILE.data, **asked))["uploadId"]
    rows, staged = 0, "mode" in asked
    # A move has places of its own; with all of them the job would have stalled more often than it may.
    passed_by = {"after the taking", "before a segment", "after the last commit"}
    for place in PLACES:
        if place in passed_by if staged else "the move" in place:
            continue
        worker = await stand.start("worker", "--die-at", place, "--die-on", str(_OCCURRENCES.get(place, 1)))
        assert await worker.ended() == -signal.SIGKILL, place
        assert worker.logged("faults.died")
        before, rows = rows, await stand.check_consistent(upload_id)
        assert rows >= before
        if place == "after a commit" and not staged:
            assert before < rows < FILE.good
        if place == "before the commit of the move":
            assert rows == 0
    await stand.check_table(FILE)
    await stand.start("worker")
    await stand.check_loaded(client, upload_id, FILE)
    await stand.check_stopped()


async def test_workers_killed_at_random_moments_until_the_load_ends(stand: Stand) -> None:
    rng = random.Random(1)
    client = await stand.start_api()
    await stand.postgres.throttle(600_000, "up")
    upload_id = (await client.upload(FILE.data))["uploadId"]
    kills = 0
    while (await client.status(upload_id))["status"] != "completed":
        worker = await stand.start("worker")
        # Longer by and by: on a slow machine a worker is to get somewhere too.
        deadline = time.monotonic() + rng.uniform(0.1, 4) * 1.1**kills
        await until(lambda: time.monotonic() > deadline)  # noqa: B023
        await worker.kill()
        kills += 1
        await stand.check_consistent(upload_id)
    assert kills > 1  # the load was long enough for that
    await stand.postgres.restore()
    await stand.start("worker")
    await stand.check_loaded(client, upload_id, FILE)
    await stand.check_stopped()


async def test_a_worker_frozen_past_its_lease_changes_nothing(stand: Stand) -> None:
    client = await stand.start_api()
    await stand.postgres.throttle(500_000, "up")
    upload_id = (await client.upload(FILE.data))["uploadId"]
    frozen = await stand.start("worker")
    await client.until(upload_id, lambda status: bool(status["rowsProcessed"]))
    frozen.signal(signal.SIGSTOP)
    second = await stand.start("worker", through=stand.settings)
    started = time.monotonic()
    status = await client.end(upload_id)
    # The lease of 2 s, the look for stalled jobs, and the load: a lock that is waited for would take 10 s at least.
    assert time.monotonic() - started < 9
    await stand.check_table(FILE)
    assert status["run"] == 2
    await stand.postgres.restore()
    frozen.signal(signal.SIGCONT)
    # Whichever it notices first.
    await until(lambda: any(map(frozen.logged, ("load.interrupted", "load.run_lost", "jobs.lease_lost"))))
    assert not frozen.logged("load.completed")
    assert second.logged("load.completed")
    assert await stand.check_loaded(client, upload_id, FILE) == status
    await stand.check_stopped()
