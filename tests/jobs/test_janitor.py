"""What the janitor removes, and what it never touches: each kind beside a living counterpart, on both stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.jobs import janitor as janitor_module
from stream_api.jobs.janitor import Janitor, Tidied
from stream_api.jobs.lock import Held
from stream_api.ledger.expiry import Expiry
from stream_api.ledger.pool import open_pool
from stream_api.ledger.rejects import RejectsLedger
from stream_api.ledger.rows import Intake
from stream_api.ledger.uploads import Ended, Ledger, Taken
from stream_api.status.connection import open_redis
from stream_api.status.store import StatusStore
from stream_api.storage.keys import data_key, manifest_key, new_rejects_key, pending_key
from stream_api.storage.manifests import Manifest, mark_pending, write_manifest
from stream_api.storage.objects import ObjectStore, open_object_store
from tests.support.manifests import CREATED_AT, make_manifest

HOUR = 3600.0


@dataclass
class Bench:
    """A janitor, and the stores around it."""

    settings: Settings
    store: ObjectStore
    ledger: Ledger
    redis: Redis
    janitor: Janitor
    now: float = 1e9

    async def tidy(self, *, later: float = 0.0) -> Tidied:
        """A round, so many seconds after the one before."""
        self.now += later
        await self.redis.delete("stream-api:janitor")
        done = await self.janitor.tidy(now=self.now)
        assert done is not None
        return done

    async def keys(self) -> set[str]:
        return {key async for key in self.store.list_keys("")}

    async def stored(self, upload_id: UUID | None = None, created_at: datetime = CREATED_AT) -> Manifest:
        """An upload as Stage 1 leaves it."""
        upload_id = upload_id or uuid4()
        key = data_key(upload_id)
        etag = await self.store.put(key, b"id\n1\n")
        manifest = make_manifest(upload_id, key=key, etag=etag, created_at=created_at)
        await mark_pending(self.store, upload_id)
        await write_manifest(self.store, manifest)
        return manifest

    def intake(self, manifest: Manifest) -> Intake:
        return Intake(
            upload_id=manifest.upload_id,
            dataset=manifest.dataset,
            table="webhook_events",
            size_bytes=manifest.size_bytes,
            segment_bytes=manifest.segment_bytes,
            callback_url=None,
            created_at=manifest.created_at,
        )

    async def run_load(self, state: str, manifest: Manifest | None = None) -> Manifest:
        """An upload whose row is in this state, and of which nothing has been cleaned up."""
        manifest = manifest or await self.stored()
        if state == "cancelled":
            await self.ledger.cancel(self.intake(manifest))
        else:
            taken = await self.ledger.take(self.intake(manifest))
            assert isinstance(taken, Taken)
            if state == "completed":
                await self.ledger.complete(manifest.upload_id, taken.run)
            elif state in {"failed", "uploaded"}:
                await self.ledger.fail(manifest.upload_id, taken.run, code="internal_error", message="x")
            if state == "uploaded":
                await self.ledger.reopen(manifest.upload_id)
        return manifest

    async def age(self, upload_id: UUID, days: float) -> None:
        """Make everything about a row that much older."""
        connection = await asyncpg.connect(self.settings.database_url.get_secret_value())
        await connection.execute(
            "UPDATE stream_api.uploads SET ended_at = ended_at - $2::float8 * interval '1 day',"
            " started_at = started_at - $2::float8 * interval '1 day',"
            " updated_at = updated_at - $2::float8 * interval '1 day' WHERE id = $1",
            upload_id,
            days,
        )
        await connection.close()

    async def name_rejects(self, upload_id: UUID, segment: int, key: str) -> None:
        """A committed segment whose ledger row names rejects."""
        connection = await asyncpg.connect(self.settings.database_url.get_secret_value())
        await connection.execute(
            "INSERT INTO stream_api.segments (upload_id, number, table_oid, start_byte, end_byte, first_line, lines,"
            " rows_read, rows_inserted, rows_updated, rows_skipped, committed_at, rejects_key)"
            " VALUES ($1, $2::bigint, 'webhook_events'::regclass, $2::bigint * 9, $2::bigint * 9 + 9, 1, 1, 1, 1, 0, 0,"
            " now(), $3)",
            upload_id,
            segment,
            key,
        )
        await connection.close()

    async def multipart(self, upload_id: UUID) -> tuple[str, str]:
        key = data_key(upload_id)
        multipart_id = await self.store.create_multipart(key)
        await self.store.upload_part(key, multipart_id, 1, b"one")
        return key, multipart_id

    async def multiparts(self) -> set[str]:
        return {key for key, _ in await self.store.list_multiparts("")}


async def open_bench(settings: Settings) -> AsyncIterator[Bench]:
    async with open_object_store(settings) as store, open_redis(settings) as redis:
        pool = await open_pool(settings)
        ledger = Ledger(pool)
        janitor = Janitor(
            settings,
            store=store,
            ledger=ledger,
            rejects=RejectsLedger(pool),
            expiry=Expiry(pool),
            statuses=StatusStore(redis, ttl_seconds=60),
            redis=redis,
        )
        yield Bench(settings, store, ledger, redis, janitor)
        await pool.close()


@pytest.fixture
async def each(settings_each_store: Settings) -> AsyncIterator[Bench]:
    async for bench in open_bench(settings_each_store):
        yield bench


@pytest.fixture
async def bench(settings: Settings) -> AsyncIterator[Bench]:
    async for bench in open_bench(settings):
        yield bench


async def test_multipart_uploads_that_stand_still_are_aborted_and_those_that_grow_are_not(each: Bench) -> None:
    await each.multipart(uuid4())
    living, multipart_id = await each.multipart(uuid4())
    foreign = await each.store.create_multipart("somebody/else")
    assert await each.tidy() == Tidied()
    await each.store.upload_part(living, multipart_id, 2, b"two")
    assert await each.tidy(later=HOUR) == Tidied(multiparts=1)
    assert await each.multiparts() == {living, "somebody/else"}
    await each.store.upload_part(living, multipart_id, 2, b"again")  # a part that is sent again counts
    assert await each.tidy(later=HOUR) == Tidied()
    assert await each.tidy(later=HOUR) == Tidied(multiparts=1)
    assert await each.multiparts() == {"somebody/else"}
    await each.store.abort_multipart("somebody/else", foreign)


async def test_one_whose_creation_was_answered_too_late_does_not_take_the_living_one_with_it(each: Bench) -> None:
    key, multipart_id = await each.multipart(uuid4())
    await each.store.create_multipart(key)  # the answer was lost: nobody knows it
    for number in range(2, 5):
        assert await each.tidy(later=HOUR) == Tidied()
        await each.store.upload_part(key, multipart_id, number, b"more")
    await each.tidy()
    assert await each.tidy(later=HOUR) == Tidied(multiparts=1)
    assert await each.multiparts() == set()


async def test_data_and_markers_without_a_manifest_go_at_the_second_sighting(each: Bench) -> None:
    living = await each.stored()
    orphan, marked = data_key(uuid4()), uuid4()
    loser = data_key(living.upload_id)  # lost to another request with the same Idempotency-Key
    foreign = {
        "elsewhere/x",
        "uploads/readme",
        "uploads/x/data-1",
        "pending/x",
        f"pending/{marked.hex}",
        f"uploads/{marked}/else",
    }
    for key in {orphan, loser} | foreign:
        await each.store.put(key, b"x")
    await mark_pending(each.store, marked)
    before = await each.keys()
    assert await each.tidy() == Tidied()
    assert await each.tidy(later=HOUR - 1) == Tidied()
    assert await each.keys() == before
    assert await each.tidy(later=1) == Tidied(data=2, markers=1)
    assert await each.keys() == before - {orphan, loser, pending_key(marked)}
    assert await each.tidy(later=HOUR) == Tidied()


async def test_an_upload_that_gets_its_manifest_between_two_sightings_stays(bench: Bench) -> None:
    manifest = await bench.stored()
    await bench.store.delete(manifest_key(manifest.upload_id))
    assert await bench.tidy() == Tidied()
    await write_manifest(bench.store, manifest)
    before = await bench.keys()
    assert await bench.tidy(later=HOUR) == Tidied()
    assert await bench.keys() == before


async def test_a_manifest_that_comes_right_before_the_removal_saves_its_data(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = await bench.stored()
    await bench.store.delete(manifest_key(manifest.upload_id))
    await bench.tidy()
    get, written = bench.store.get, False

    async def late(key: str) -> bytes:
        nonlocal written
        try:
            return await get(key)
        finally:
            if not written:
                written = True
                await write_manifest(bench.store, manifest)

    monkeypatch.setattr(bench.store, "get", late)
    assert await bench.tidy(later=HOUR) == Tidied()
    assert manifest.key in await bench.keys()


async def test_a_manifest_that_comes_while_its_marker_is_removed_gets_it_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = await bench.stored()
    await bench.store.delete(manifest_key(manifest.upload_id))
    await bench.store.delete(manifest.key)
    await bench.tidy()
    delete = bench.store.delete

    async def crossed(key: str) -> None:
        await delete(key)
        await write_manifest(bench.store, manifest)

    monkeypatch.setattr(bench.store, "delete", crossed)
    assert await bench.tidy(later=HOUR) == Tidied()
    assert pending_key(manifest.upload_id) in await bench.keys()


async def test_sightings_that_redis_has_lost_make_removal_later(bench: Bench) -> None:
    orphan = data_key(uuid4())
    await bench.store.put(orphan, b"x")
    await bench.tidy()
    await bench.redis.flushdb()
    assert await bench.tidy(later=HOUR) == Tidied()
    assert await bench.tidy(later=HOUR) == Tidied(data=1)
    assert await bench.redis.exists("stream-api:janitor:sightings") == 1
    await bench.tidy()
    assert await bench.redis.exists("stream-api:janitor:sightings") == 0


async def test_uploads_are_looked_at_by_pages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(janitor_module, "_PAGE", 2)
    for upload_id in (uuid4() for _ in range(5)):
        for _ in range(3):
            await bench.store.put(data_key(upload_id), b"")
    for _ in range(5):
        await mark_pending(bench.store, uuid4())
    kept = await bench.stored()
    await bench.tidy()
    assert await bench.tidy(later=HOUR) == Tidied(data=15, markers=5)
    assert await bench.keys() == {kept.key, manifest_key(kept.upload_id), pending_key(kept.upload_id)}


async def test_data_of_ended_uploads_goes_and_that_of_failed_and_running_ones_stays(bench: Bench) -> None:
    done = [await bench.run_load("completed"), await bench.run_load("cancelled")]
    kept = [await bench.run_load(state) for state in ("failed", "processing", "uploaded")]
    before = await bench.keys()
    assert await bench.tidy() == Tidied(ended=2)
    gone = {manifest.key for manifest in done} | {pending_key(manifest.upload_id) for manifest in done}
    assert await bench.keys() == before - gone
    assert {manifest.key for manifest in kept} <= before - gone


async def test_rejects_that_no_ledger_row_names(each: Bench) -> None:
    manifest = await each.run_load("processing")
    named, other = (new_rejects_key(manifest.upload_id, 0) for _ in range(2))
    late, stranger = new_rejects_key(manifest.upload_id, 1), new_rejects_key(uuid4(), 0)
    for key in (named, other, late, stranger):
        await each.store.put(key, b"x")
    await each.name_rejects(manifest.upload_id, 0, named)
    assert await each.tidy() == Tidied()
    # One whose transaction has committed in the meantime.
    await each.name_rejects(manifest.upload_id, 1, late)
    before = await each.keys()
    assert await each.tidy(later=1.1 * HOUR) == Tidied(rejects=2)
    assert await each.keys() == before - {other, stranger}
    assert await each.tidy(later=1.1 * HOUR) == Tidied()


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled"])
async def test_an_upload_expires_after_its_last_end_state(each: Bench, state: str) -> None:
    old, young = await each.run_load(state), await each.run_load("failed")
    await each.store.put(f"uploads/{old.upload_id}/rejects/0", b"x")
    await each.redis.set(f"stream-api:upload:{old.upload_id}", "{}")
    await each.age(old.upload_id, 7.01)
    await each.age(young.upload_id, 6.99)
    assert await each.tidy() == Tidied(expired=1)
    assert await each.keys() == {young.key, manifest_key(young.upload_id), pending_key(young.upload_id)}
    assert await each.ledger.get(old.upload_id) is None
    assert await each.redis.exists(f"stream-api:upload:{old.upload_id}") == 0
    assert await each.ledger.get(young.upload_id) is not None


@pytest.mark.parametrize("state", ["uploaded", "processing"])
async def test_what_waits_or_runs_never_expires(bench: Bench, state: str) -> None:
    manifest = await bench.run_load(state)
    await bench.age(manifest.upload_id, 1000)
    before = await bench.keys()
    assert await bench.tidy() == Tidied()
    assert await bench.tidy(later=1000 * HOUR) == Tidied()
    assert await bench.keys() == before


async def test_a_failed_upload_that_is_retried_does_not_expire(bench: Bench) -> None:
    manifest = await bench.run_load("failed")
    await bench.age(manifest.upload_id, 8)
    await bench.ledger.reopen(manifest.upload_id)
    assert await bench.tidy() == Tidied()
    assert isinstance(await bench.ledger.take(bench.intake(manifest)), Taken)


@pytest.mark.parametrize("step", range(5))
async def test_an_expiry_that_breaks_off_is_completed_and_leads_nowhere_until_then(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    manifest = await bench.run_load("failed")
    await bench.store.put(f"uploads/{manifest.upload_id}/rejects/0", b"x")
    await bench.age(manifest.upload_id, 8)
    delete, deletions = bench.store.delete, 0

    async def breaking(key: str) -> None:
        nonlocal deletions
        if deletions == step:
            raise Failure("storage_unavailable", "x")
        deletions += 1
        await delete(key)

    async def not_forgotten(*_: Any) -> None:
        raise Failure("database_unavailable", "x")

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "delete", breaking)
        patch.setattr(Expiry, "forget", not_forgotten)  # where everything else is done
        with pytest.raises(Failure):
            await bench.tidy()
    assert deletions == min(step, 4)  # data, rejects, manifest, marker
    with pytest.raises(Failure) as failed:
        await bench.ledger.reopen(manifest.upload_id)
    assert failed.value.code == "upload_gone"
    assert isinstance(await bench.ledger.take(bench.intake(manifest)), Ended)
    assert await bench.tidy() == Tidied(expired=1)
    assert await bench.keys() == set()
    assert await bench.ledger.get(manifest.upload_id) is None


async def test_an_upload_whose_id_has_come_back_is_not_touched(bench: Bench) -> None:
    first = await bench.run_load("failed")
    await bench.age(first.upload_id, 8)
    for key in await bench.keys():
        await bench.store.delete(key)
    second = await bench.stored(first.upload_id, CREATED_AT + timedelta(days=8))
    before = await bench.keys()
    assert await bench.tidy() == Tidied(expired=1)
    assert await bench.keys() == before
    assert isinstance(await bench.ledger.take(bench.intake(second)), Taken)
    row = await bench.ledger.get(second.upload_id)
    assert row is not None
    assert row.created_at == second.created_at


async def test_two_at_once_remove_everything_and_nothing_else(bench: Bench) -> None:
    old = [await bench.run_load("failed") for _ in range(10)]
    for manifest in old:
        await bench.age(manifest.upload_id, 8)
    living = await bench.run_load("failed")

    held = Held(bench.redis, "both", "believe to hold it")
    await asyncio.gather(*(bench.janitor._expire(held, Tidied()) for _ in range(2)))
    assert {key.split("/")[1] for key in await bench.keys()} == {str(living.upload_id)}


async def test_of_several_workers_one_does_a_round_in_an_interval(bench: Bench) -> None:
    assert await bench.janitor.tidy() == Tidied()
    assert await bench.janitor.tidy() is None


async def test_an_upload_whose_manifest_cannot_be_read_is_passed_over_and_in_nobodys_way(bench: Bench) -> None:
    unreadable, orphan = await bench.stored(), data_key(uuid4())
    await bench.store.put(manifest_key(unreadable.upload_id), b'{"version": 99}')
    await bench.store.put(orphan, b"x")
    before = await bench.keys()
    await bench.tidy()
    assert (await bench.tidy(later=2 * HOUR)).data == 1
    assert await bench.keys() == before - {orphan}


async def test_expired_uploads_that_are_passed_over_are_not_in_the_way_of_later_ones(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(janitor_module, "_PAGE", 2)
    for number in range(5):
        upload = await bench.run_load("failed")
        await bench.age(upload.upload_id, 20 - number)
        if number < 3:
            await bench.store.put(manifest_key(upload.upload_id), b"{}")
    async with asyncio.timeout(20):
        assert (await bench.tidy()).expired == 2


async def test_staging_tables_that_nobody_wants_go(bench: Bench) -> None:
    connection = await asyncpg.connect(bench.settings.database_url.get_secret_value())
    await connection.execute(f"CREATE TABLE stream_api.staging_{uuid4().hex} (a int)")
    assert await bench.tidy() == Tidied(staging=1)
    assert await bench.tidy() == Tidied()
    await connection.close()
