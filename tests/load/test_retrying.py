"""Faults that pass, waited out inside the load: its job hears nothing of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import structlog.testing

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.load import retrying
from stream_api.load.retrying import Attempts, FullDisks
from tests.load.behind import ROWS, Behind, behind_proxies, check_complete, ended_for_now, until
from tests.load.conftest import events, open_loading
from tests.support.settings import change

FULL = Failure("database_unavailable", "x", sqlstate="53100")


@pytest.fixture
async def patient(settings: Settings) -> AsyncIterator[Behind]:
    async with behind_proxies(settings, load_attempts=4) as made:
        yield made


async def completed(behind: Behind, load: asyncio.Task[None]) -> int:
    """The load has gone on by itself, to its exact end; its run."""
    await load
    await check_complete(behind.loading)
    return behind.loading.statuses.records[-1].run


async def test_a_terminated_lane_does_not_end_the_load(patient: Behind) -> None:
    _, load = await patient.under_way(400_000)
    lanes = await patient.direct.lanes()
    await patient.direct.value("SELECT pg_terminate_backend($1)", lanes[0]["pid"])
    assert await completed(patient, load) == 2
    records = patient.loading.statuses.records
    assert "database" in {record.waiting_for for record in records}
    # What was committed was not loaded again: each segment has one ledger row, and each row of the table is there once.
    assert [record.rows_read for record in records] == sorted(record.rows_read for record in records)


async def test_connections_that_are_reset_do_not_end_the_load(patient: Behind) -> None:
    _, load = await patient.under_way(400_000)
    for _ in range(3):
        accepted = patient.postgres.accepted
        await patient.postgres.drop()
        await until(lambda accepted=accepted: load.done() or patient.postgres.accepted > accepted + 2)  # type: ignore[misc]
    await patient.postgres.restore()
    await completed(patient, load)


async def test_a_row_that_somebody_holds_for_a_while_costs_no_attempt(settings: Settings) -> None:
    # With several lanes one or another of them holds the row all the time, and nobody else gets it.
    async with behind_proxies(change(settings, lanes=1), load_attempts=1) as behind:
        manifest, load = await behind.under_way(300_000)
        with structlog.testing.capture_logs() as logs:
            async with behind.direct.pool.acquire() as holder, holder.transaction():
                await holder.execute("SELECT FROM stream_api.uploads WHERE id = $1 FOR UPDATE", manifest.upload_id)
                # Longer than a statement of the ledger waits for a lock.
                await until(lambda: "load.segment_claimed_again" in {entry["event"] for entry in logs})
            await behind.postgres.restore()
            assert await completed(behind, load) == 1


async def test_an_outage_ends_the_load_for_now_after_some_attempts(
    patient: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "_BASE_SECONDS", 0.01)
    manifest, load = await patient.under_way(200_000)
    await patient.postgres.refuse()
    assert (await ended_for_now(load)).code == "database_unavailable"
    assert patient.loading.statuses.records[-1].waiting_for == "database"
    await patient.recovered(manifest)


async def test_a_load_that_another_worker_has_taken_is_left_to_it(patient: Behind) -> None:
    manifest, load = await patient.under_way(400_000)
    # Taking it ends the first one's lanes, which to the first one is a fault like any other.
    row = await patient.direct.load(manifest)
    assert (row.state, row.rows_inserted) == ("completed", ROWS)
    await load
    assert row == await patient.direct.ledger.get(manifest.upload_id)
    assert await patient.direct.count() == ROWS


async def test_a_taking_whose_answer_was_lost_is_not_taken_for_another_workers(
    patient: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = patient.loading.ledger
    take = ledger.take
    answers = 0

    async def lossy(*args: object, **options: object) -> object:
        nonlocal answers
        taken = await take(*args, **options)  # type: ignore[arg-type]
        answers += 1
        if answers == 2:
            raise Failure("database_unavailable", "the answer was lost")
        return taken

    monkeypatch.setattr(ledger, "take", lossy)
    manifest, load = await patient.under_way(400_000)
    await patient.postgres.drop()
    # It cannot know whose the new run is, so it asks for the job again, rather than to say that all is well.
    assert (await ended_for_now(load)).detail == "the answer was lost"
    await patient.recovered(manifest)


def test_attempts_are_counted_anew_after_each_segment() -> None:
    attempts = Attempts(3)
    assert [attempts.failed() is None for _ in range(2)] == [False, False]
    attempts.segments = 1
    assert [attempts.failed() is None for _ in range(3)] == [False, False, True]
    assert Attempts(1).failed() is None


def test_a_disk_that_stays_full_is_permanent_after_a_while() -> None:
    now = 1000.0
    disks = FullDisks(60, clock=lambda: now)
    upload_id = uuid4()
    other = Failure("database_unavailable", "x", sqlstate="57P01")
    assert disks.judged(upload_id, FULL, segments=1) is FULL
    now += 59
    assert disks.judged(upload_id, FULL, segments=1) is FULL
    assert disks.judged(upload_id, other, segments=1) is other
    # It got on, here or elsewhere: the wait begins anew.
    assert disks.judged(upload_id, FULL, segments=2) is FULL
    now += 59
    assert disks.judged(upload_id, FULL, segments=2).transient
    now += 1
    failure = disks.judged(upload_id, FULL, segments=2)
    assert (failure.code, failure.transient, failure.status) == ("disk_full", False, 507)
    assert "make room" in failure.detail
    # A retry has all the time again.
    assert disks.judged(upload_id, FULL, segments=2) is FULL
    disks.forget(upload_id)
    now += 3600
    assert disks.judged(upload_id, FULL, segments=2) is FULL


def test_only_so_many_full_disks_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "_MAX_REMEMBERED", 1)
    now = 0.0
    disks = FullDisks(60, clock=lambda: now)
    first, second = uuid4(), uuid4()
    disks.judged(first, FULL, segments=0)
    disks.judged(second, FULL, segments=0)
    now = 60.0
    assert disks.judged(first, FULL, segments=0).transient


async def test_a_ledger_that_stays_incomplete_fails_the_load(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    incomplete = Failure("ledger_incomplete", "The ledger covers 1 of 2 bytes.")

    async def complete(*_: object, **__: object) -> None:
        raise incomplete

    async with open_loading(change(settings, load_attempts=2)) as loading:
        manifest = await loading.stored(events(range(3)))
        with monkeypatch.context() as patch:
            patch.setattr(loading.ledger, "complete", complete)
            row = await loading.load(manifest)
        assert (row.state, row.run) == ("failed", 2)
        assert row.error is not None
        assert row.error["code"] == "ledger_incomplete"
        await loading.ledger.reopen(manifest.upload_id)
        row = await loading.load(manifest)
        assert (row.state, row.rows_inserted, await loading.count()) == ("completed", 3, 3)
