"""Loads of which all rows go into the table together, or none: `mode` atomic and replace, and dry runs."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from stream_api.config import Settings
from stream_api.datasets.dataset import built_in
from stream_api.dialects.dialect import Dialect
from stream_api.ledger.expiry import Expiry
from stream_api.ledger.rows import UploadRow
from stream_api.load.loader import intake_of
from stream_api.options import Mode, Options
from stream_api.storage.manifests import Amendments, Manifest
from tests.load.behind import ROWS, SEGMENT_BYTES, Behind, behind_proxies, ended_for_now, until
from tests.load.conftest import HEADER, Loading, event, events, open_loading
from tests.support.settings import change

ATOMIC = Options(mode="atomic")
REPLACE = Options(mode="replace")
DRY = Options(dry_run=True)
WAYS = {"atomic": ATOMIC, "replace": REPLACE, "dry": DRY}


@pytest.fixture
async def behind(settings: Settings) -> AsyncIterator[Behind]:
    async with behind_proxies(settings) as made:
        yield made


def figures(row: UploadRow) -> tuple[int, int, int, dict[str, int]]:
    return row.rows_inserted, row.rows_updated, row.rows_skipped, row.rejected


async def staging(loading: Loading) -> list[tuple[Any, ...]]:
    """The staging tables that there are."""
    return await loading.fetch(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'stream_api' AND tablename ~ 'staging'"
    )


async def load(loading: Loading, data: bytes, **options: Any) -> UploadRow:
    """Load a file, which completes; its figures add up, and nothing is left."""
    row = await loading.load(await loading.stored(data, **options))
    assert row.state == "completed", row.error
    assert row.rows_read == row.rows_processed + row.rows_valid + row.rows_failed
    assert (row.rows_staged, await loading.lanes()) == (0, [])
    assert (f"staging_{row.id.hex}",) not in await staging(loading)
    rejects = await loading.rejects(row.id)
    assert [(int(each["line"]), each["code"]) for each in rejects[:10]] == [
        (each["line"], each["code"]) for each in row.first_rejects
    ]
    assert len(rejects) == row.rows_failed
    return row


@pytest.mark.parametrize("segment_bytes", [2000, 200_000])
@pytest.mark.parametrize("conflict", ["error", "skip", "update"])
@pytest.mark.parametrize("mode", ["atomic", "replace"])
async def test_the_same_file_twice(loading: Loading, segment_bytes: int, conflict: Any, mode: Mode) -> None:
    data, options = events(range(300)), Options(mode=mode, conflict=conflict)
    again = {
        "error": (0, 0, 0, {"duplicate_key": 300}),
        "skip": (0, 0, 300, {}),
        "update": (0, 300, 0, {}),
    }[conflict]
    assert figures(await load(loading, data, options=options, segment_bytes=segment_bytes)) == (300, 0, 0, {})
    row = await load(loading, data, options=options, segment_bytes=segment_bytes)
    assert figures(row) == ((300, 0, 0, {}) if mode == "replace" else again)
    assert await loading.count() == 300
    assert await loading.original(row.id) == (data if row.rows_failed else HEADER)


@pytest.mark.parametrize("way", WAYS)
async def test_nothing_is_in_the_table_before_everything_is(behind: Behind, way: str) -> None:
    await load(behind.direct, events(range(ROWS, ROWS + 5)))
    manifest = await behind.direct.stored(events(range(ROWS)), segment_bytes=SEGMENT_BYTES, options=WAYS[way])
    await behind.postgres.throttle(500_000, "up")
    task = await staged(behind, manifest)
    await behind.postgres.drop()
    await ended_for_now(task)
    assert await behind.direct.count() == 5
    row = await behind.direct.ledger.get(manifest.upload_id)
    assert row is not None
    assert (row.state, row.rows_processed, row.rows_read) == ("processing", 0, row.rows_staged)
    assert 0 < row.rows_staged < ROWS
    record = behind.loading.statuses.records[-1]
    assert (record.rows_processed, record.rows_read, record.mode) == (0, record.rows_staged, WAYS[way].mode or "append")
    await behind.postgres.restore()
    runs = len(behind.direct.pipelines)
    row = await behind.direct.load(manifest)
    assert len(behind.direct.pipelines) == runs + 1, "what was staged is not read again"
    assert row.state == "completed"
    expected = {"atomic": (ROWS, 0, ROWS + 5), "replace": (ROWS, 0, ROWS), "dry": (0, ROWS, 5)}[way]
    assert (row.rows_inserted, row.rows_valid, await behind.direct.count()) == expected
    assert await staging(behind.direct) == []


async def staged(behind: Behind, manifest: Manifest) -> asyncio.Task[None]:
    """A load that has collected something and has more to do."""
    task = asyncio.create_task(behind.loading.loader.load(manifest.upload_id))
    await until(lambda: task.done() or any(record.rows_staged for record in behind.loading.statuses.records))
    assert not task.done()
    return task


async def test_bad_rows_and_refused_rows_come_in_the_order_of_the_file(loading: Loading) -> None:
    await loading.execute("ALTER TABLE webhook_events ADD CHECK (amount < 1000)")
    records = [
        record
        for number in range(0, 300, 3)
        for record in (
            event(number),
            event(number + 1, occurred_at="never"),
            event(number),
            event(number + 2, amount="5000"),
            b"too,few\n",
        )
    ]
    data = HEADER + b"".join(records)
    codes = ["invalid_date", "duplicate_key", "check_violated", "wrong_field_count"] * 100
    for options in (msgspec.structs.replace(DRY, mode="replace"), DRY, ATOMIC, REPLACE):
        row = await load(loading, data, options=options, segment_bytes=3000)
        assert (row.rows_read, row.rows_failed) == (500, 400)
        assert [each["code"] for each in await loading.rejects(row.id)] == codes
        assert await loading.original(row.id) == HEADER + b"".join(
            record for number, record in enumerate(records) if number % 5
        )
        assert await loading.count() == (0 if options.dry_run else 100)
        assert row.rows_valid == (100 if options.dry_run else 0)


@pytest.mark.parametrize("mode", ["atomic", "replace"])
@pytest.mark.parametrize("ending", [b"\n", b""])
async def test_of_a_key_the_first_or_the_last_of_the_file(loading: Loading, mode: Mode, ending: bytes) -> None:
    await load(loading, HEADER + event(1, event_type="old") + event(500, event_type="old"))
    records = [event(number % 40, event_type=f"row-{number}") for number in range(200)]
    data = (HEADER + b"".join(records)).removesuffix(b"\n") + ending
    before = 0 if mode == "replace" else 1
    row = await load(loading, data, options=Options(mode=mode, conflict="skip"), segment_bytes=2000)
    assert figures(row) == (40 - before, 0, 160 + before, {})
    assert await loading.value("SELECT event_type FROM webhook_events WHERE id::text ~ '0001$'") == (
        "old" if before else "row-1"
    )
    row = await load(loading, data, options=Options(mode=mode, conflict="update"), segment_bytes=2000)
    assert figures(row) == ((0, 200, 0, {}) if before else (40, 160, 0, {}))
    assert await loading.value("SELECT event_type FROM webhook_events WHERE id::text ~ '0027$'") == "row-199"
    assert await loading.count() == 40 + before


async def test_triggers_that_drop_rows(loading: Loading) -> None:
    await loading.execute(
        "CREATE FUNCTION drop_some() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RETURN CASE WHEN NEW.status <> 'drop' THEN NEW END; END $$; "
        "CREATE TRIGGER drop_some BEFORE INSERT ON webhook_events FOR EACH ROW EXECUTE FUNCTION drop_some()"
    )
    data = HEADER + b"".join(event(number, status="drop" if number % 4 == 0 else "ok") for number in range(100))
    row = await load(loading, data, options=ATOMIC, segment_bytes=2000)
    assert figures(row) == (75, 0, 25, {})


@pytest.mark.parametrize("dropped", ["dropped", "emptied", "another"])
async def test_a_staging_table_that_goes_missing(behind: Behind, dropped: str) -> None:
    manifest = await behind.direct.stored(events(range(ROWS)), segment_bytes=SEGMENT_BYTES, options=ATOMIC)
    await behind.postgres.throttle(500_000, "up")
    task = await staged(behind, manifest)
    await behind.postgres.drop()
    await ended_for_now(task)
    name = f"stream_api.staging_{manifest.upload_id.hex}"
    await behind.direct.execute(
        {
            "dropped": f"DROP TABLE {name}",
            "emptied": f"TRUNCATE {name}",
            "another": f"CREATE TABLE copied AS TABLE {name}; DROP TABLE {name}; "
            "ALTER TABLE copied SET SCHEMA stream_api; "
            f"ALTER TABLE stream_api.copied RENAME TO staging_{manifest.upload_id.hex}",
        }[dropped]
    )
    await behind.postgres.restore()
    row = await behind.direct.load(manifest)
    assert (row.state, row.rows_read, row.rows_inserted, await behind.direct.count()) == ("completed", ROWS, ROWS, ROWS)
    assert await staging(behind.direct) == []


async def test_a_staging_table_dropped_while_it_is_filled(settings: Settings) -> None:
    async with behind_proxies(settings, load_attempts=4) as behind:
        manifest = await behind.direct.stored(events(range(ROWS)), segment_bytes=SEGMENT_BYTES, options=ATOMIC)
        await behind.postgres.throttle(500_000, "up")
        task = await staged(behind, manifest)
        await behind.direct.execute(f"DROP TABLE stream_api.staging_{manifest.upload_id.hex}")
        await behind.postgres.restore()
        await task
        row = await behind.direct.ledger.get(manifest.upload_id)
        assert row is not None
        assert (row.state, row.rows_inserted, await behind.direct.count()) == ("completed", ROWS, ROWS)


async def test_a_failed_move_leaves_everything_and_the_retry_only_moves(loading: Loading) -> None:
    await loading.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'no' USING ERRCODE = '55000'; END $$; "
        "CREATE TRIGGER fail AFTER INSERT ON webhook_events EXECUTE FUNCTION fail()"
    )
    manifest = await loading.stored(events(range(300)) + b"too,few\n", segment_bytes=2000, options=REPLACE)
    row = await loading.load(manifest)
    assert (row.state, row.rows_read, row.rows_staged, row.rows_failed) == ("failed", 301, 300, 1)
    assert len(await staging(loading)) == 1
    assert await Expiry(loading.pool).drop_staging() == 0
    await loading.execute("DROP TRIGGER fail ON webhook_events")
    await loading.ledger.reopen(manifest.upload_id)
    pipelines = len(loading.pipelines)
    row = await loading.load(manifest)
    assert (row.state, row.rows_inserted, row.rows_staged, row.rows_failed) == ("completed", 300, 0, 1)
    assert len(loading.pipelines) == pipelines
    assert (await loading.count(), await staging(loading)) == (300, [])


@pytest.mark.parametrize("way", WAYS)
async def test_a_load_cut_off_in_its_move(loading: Loading, way: str) -> None:
    """Its worker freezes while it waits for the table: the successor ends its session and moves."""
    await load(loading, events(range(1000, 1005)))
    manifest = await loading.stored(events(range(300)), segment_bytes=2000, options=WAYS[way])
    async with loading.pool.acquire() as locker, open_loading(change(loading.settings, load_attempts=1)) as other:
        transaction = locker.transaction()
        await transaction.start()
        await locker.execute("LOCK TABLE webhook_events IN SHARE ROW EXCLUSIVE MODE")
        task = asyncio.create_task(other.loader.load(manifest.upload_id))
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        async with asyncio.timeout(30):
            while not await loading.value(waits):
                pass
        row = await loading.ledger.get(manifest.upload_id)
        assert row is not None
        assert (row.rows_staged, row.state) == (300, "processing")
        successor = asyncio.create_task(loading.loader.load(manifest.upload_id))
        await ended_for_now(task)
        await transaction.rollback()
        await successor
    row = await loading.ledger.get(manifest.upload_id)
    assert row is not None
    assert row.state == "completed"
    expected = {"atomic": (300, 305), "replace": (300, 300), "dry": (0, 5)}[way]
    assert (row.rows_inserted, await loading.count()) == expected
    assert (await staging(loading), await loading.lanes()) == ([], [])


@pytest.mark.parametrize("way", WAYS)
async def test_a_load_that_is_cancelled_in_its_move(loading: Loading, way: str) -> None:
    await load(loading, events(range(1000, 1005)))
    manifest = await loading.stored(events(range(300)), segment_bytes=2000, options=WAYS[way])
    async with loading.pool.acquire() as locker:
        transaction = locker.transaction()
        await transaction.start()
        await locker.execute("LOCK TABLE webhook_events IN SHARE ROW EXCLUSIVE MODE")
        task = asyncio.create_task(loading.loader.load(manifest.upload_id))
        async with asyncio.timeout(30):
            while not await loading.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                pass
        cancelled = await loading.ledger.cancel(intake_of(manifest, built_in("webhook_events")))
        assert (cancelled.state, cancelled.rows_processed, cancelled.rows_staged) == ("cancelled", 0, 300)
        await transaction.rollback()
        await task
    assert (await loading.count(), await staging(loading), await loading.lanes()) == (5, [], [])


async def test_staging_tables_that_nobody_wants(loading: Loading) -> None:
    names = [f"staging_{'0' * 32}", "staging_x"]
    for name in names:
        await loading.execute(f"CREATE TABLE stream_api.{name} (a int)")
    assert await Expiry(loading.pool).drop_staging() == 1
    assert await staging(loading) == [("staging_x",)]


async def test_a_replace_that_was_accepted_earlier_comes_too_late(loading: Loading) -> None:
    first = await loading.stored(events(range(10)), options=REPLACE)
    second = await loading.stored(events(range(20)), options=REPLACE)
    assert (await loading.load(second)).state == "completed"
    row = await loading.load(first)
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", "superseded")
    assert (await loading.count(), row.rows_read, await staging(loading)) == (20, 0, [])
    # A dry run of such a file says the same; one that is accepted now does not, and replaces nothing.
    assert (
        figures(await load(loading, events(range(5)), options=msgspec.structs.replace(REPLACE, dry_run=True)))[0] == 0
    )
    assert (await load(loading, events(range(7)), options=REPLACE)).rows_inserted == 7
    assert await loading.count() == 7


async def test_readers_see_the_old_content_until_the_commit(loading: Loading) -> None:
    await load(loading, events(range(10)))
    await loading.execute(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$; "
        "CREATE TRIGGER wait AFTER INSERT ON webhook_events EXECUTE FUNCTION wait()"
    )
    async with loading.pool.acquire() as holder:
        await holder.execute("SELECT pg_advisory_lock(4711)")
        task = asyncio.create_task(load(loading, events(range(20, 23)), options=REPLACE))
        async with asyncio.timeout(30):
            while not await loading.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                pass
        assert await loading.count() == 10
        await holder.execute("SELECT pg_advisory_unlock(4711)")
        await task
    assert await loading.count() == 3


@pytest.mark.parametrize(
    ("action", "code"),
    [("ON DELETE CASCADE", "replace_refused"), ("ON DELETE SET NULL", "replace_refused"), ("", "replace_refused")],
)
async def test_a_replace_that_would_change_other_tables(loading: Loading, action: str, code: str) -> None:
    await load(loading, events(range(10)))
    await loading.execute(
        f"CREATE TABLE referring (id uuid REFERENCES webhook_events {action}); "
        "INSERT INTO referring SELECT id FROM webhook_events LIMIT 1"
    )
    row = await loading.load(await loading.stored(events(range(20)), options=REPLACE))
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", code)
    assert (await loading.count(), await loading.value("SELECT count(id) FROM referring")) == (10, 1)


async def test_too_many_rejects_in_the_move(loading: Loading) -> None:
    await load(loading, events(range(50)))
    manifest = await loading.stored(events(range(100)), options=ATOMIC, segment_bytes=2000, max_rejects="49")
    row = await loading.load(manifest)
    assert row.error is not None
    assert (row.state, row.error["code"], row.error["rowsFailed"]) == ("failed", "too_many_rejects", 50)
    assert {each["code"] for each in row.error["rejects"]} == {"duplicate_key"}
    assert "Nothing is in the table" in row.error["message"]
    assert await loading.count() == 50
    await load(loading, events(range(100)), options=ATOMIC, segment_bytes=2000, max_rejects="50")


async def test_partitions_and_identity(loading: Loading) -> None:
    await loading.execute(
        "DROP TABLE webhook_events; "
        "CREATE TABLE webhook_events (id int GENERATED ALWAYS AS IDENTITY, day date, v text, "
        "PRIMARY KEY (id, day)) PARTITION BY RANGE (day); "
        "CREATE TABLE early PARTITION OF webhook_events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01'); "
        "CREATE TABLE late PARTITION OF webhook_events FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')"
    )
    data = b"id,day,v\n1,2026-02-02,a\n2,2027-02-02,b\n3,2029-01-01,c\n1,2026-02-02,d\n"
    for options, expected in (
        (ATOMIC, (2, 0, 0, {"check_violated": 1, "duplicate_key": 1})),
        (Options(mode="atomic", conflict="update"), (0, 3, 0, {"check_violated": 1})),
        (Options(mode="replace", conflict="update"), (2, 1, 0, {"check_violated": 1})),
    ):
        assert figures(await load(loading, data, options=options)) == expected
    assert await loading.fetch("SELECT id, v FROM webhook_events ORDER BY id") == [(1, "d"), (2, "b")]


async def test_rows_that_refer_to_rows_of_other_segments(loading: Loading) -> None:
    """They go in together, so that it does not matter which comes first."""
    await loading.execute(
        "DROP TABLE webhook_events; "
        "CREATE TABLE webhook_events (id int PRIMARY KEY, parent int REFERENCES webhook_events)"
    )
    data = b"id,parent\n" + b"".join(f"{number},{number + 1}\n".encode() for number in range(300)) + b"300,\n"
    assert figures(await load(loading, data, options=ATOMIC, segment_bytes=200)) == (301, 0, 0, {})
    assert figures(await load(loading, data, options=REPLACE, segment_bytes=200)) == (301, 0, 0, {})


async def test_a_file_without_rows_replaces_everything(loading: Loading) -> None:
    await load(loading, events(range(10)))
    assert figures(await load(loading, HEADER, options=REPLACE)) == (0, 0, 0, {})
    assert await loading.count() == 0


async def test_records_of_a_compressed_file(loading: Loading) -> None:
    """What the target refuses is read again from the file, which then has to be decoded once more."""
    await load(loading, events(range(0, 300, 3)))
    data = events(range(300))
    row = await load(
        loading, gzip.compress(data), dialect=Dialect(compression="gzip"), options=ATOMIC, segment_bytes=2000
    )
    assert figures(row) == (200, 0, 0, {"duplicate_key": 100})
    assert await loading.original(row.id) == events(range(0, 300, 3))


async def test_a_role_that_may_not_create_tables(loading: Loading) -> None:
    database = await loading.value("SELECT current_database()")
    await loading.execute(
        "DROP ROLE IF EXISTS lacking; CREATE ROLE lacking; GRANT INSERT ON webhook_events TO lacking; "
        "GRANT USAGE ON SCHEMA stream_api TO lacking; "
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA stream_api TO lacking"
    )
    manifest = await loading.stored(events(range(3)), options=ATOMIC)
    await loading.execute(f"ALTER DATABASE {database} SET role = lacking")
    async with open_loading(loading.settings) as limited:
        row = await limited.load(manifest)
    await loading.execute(f"ALTER DATABASE {database} RESET role; DROP OWNED BY lacking; DROP ROLE lacking")
    assert row.error is not None
    assert (row.state, row.error["code"], row.error["sqlstate"]) == ("failed", "database_refused", "42501")
    assert "permission denied for schema stream_api" in row.error["message"]


async def test_a_retry_in_another_mode(loading: Loading) -> None:
    """What was collected for the first is of no use to the second, and is dropped."""
    late = await loading.stored(events(range(300)), segment_bytes=2000, options=REPLACE, max_rejects="9")
    await load(loading, events(range(10)), options=ATOMIC)
    await loading.execute("CREATE TABLE referring (id uuid REFERENCES webhook_events ON DELETE CASCADE)")
    row = await loading.load(late)
    assert row.error is not None
    assert (row.state, row.error["code"], row.rows_staged) == ("failed", "replace_refused", 300)
    said = Amendments(fields={}, dialect=late.dialect, options=Options(conflict="skip"), max_rejects=None).encode()
    await loading.ledger.reopen(row.id, run=row.run, amendments=said, of_plan=["mode", "conflict"])
    row = await loading.load(late)
    assert (row.state, row.mode, row.rows_staged) == ("completed", "append", 0)
    assert figures(row) == (290, 0, 10, {})
    await Expiry(loading.pool).drop_staging()
    assert (await loading.count(), await staging(loading)) == (300, [])


async def test_a_replace_that_comes_too_late_while_it_waits(loading: Loading) -> None:
    await load(loading, events(range(10)))
    manifest = await loading.stored(events(range(20)), segment_bytes=2000, options=REPLACE)
    async with loading.pool.acquire() as locker:
        transaction = locker.transaction()
        await transaction.start()
        await locker.execute("LOCK TABLE webhook_events IN SHARE ROW EXCLUSIVE MODE")
        task = asyncio.create_task(loading.load(manifest))
        async with asyncio.timeout(30):
            while not await loading.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                pass
        await locker.execute(
            "INSERT INTO stream_api.replaced VALUES ('webhook_events'::regclass, now() + interval '1 s', $1)", uuid4()
        )
        await transaction.commit()
        row = await task
    assert row.error is not None
    assert (row.state, row.error["code"], row.rows_staged) == ("failed", "superseded", 20)
    # No retry can succeed, so what it has collected is not kept for one.
    assert (await loading.count(), await staging(loading)) == (10, [])
