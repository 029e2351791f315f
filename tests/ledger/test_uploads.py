from __future__ import annotations

import asyncio
from dataclasses import replace
from uuid import UUID, uuid4

import asyncpg
import pytest

from stream_api.errors import Failure, RunLost
from stream_api.ledger.pool import using
from stream_api.ledger.rows import UploadRow
from stream_api.ledger.uploads import Ended, Taken
from tests.ledger.conftest import CREATED_AT, Loads, figures


async def test_the_first_take_makes_the_row_of_what_the_manifest_says(loads: Loads, upload_id: UUID) -> None:
    assert await loads.ledger.get(upload_id) is None
    assert await loads.take(upload_id, size_bytes=123) == Taken(run=1, plan=None, segments=[])
    row = await loads.ledger.get(upload_id)
    assert row is not None
    assert (row.id, row.dataset, row.table) == (upload_id, "webhook_events", "webhook_events")
    assert (row.state, row.run, row.size_bytes, row.segment_bytes) == ("processing", 1, 123, 10)
    assert row.created_at == CREATED_AT
    assert row.created_at.tzinfo is not None
    assert row.started_at is not None
    assert row.ended_at is None
    assert row.error is None
    assert not row.ended
    assert row.progress == 0


async def test_a_later_take_raises_the_run_and_finds_plan_segments_and_start(loads: Loads, upload_id: UUID) -> None:
    taken = await loads.take(upload_id)
    before = await loads.ledger.get(upload_id)
    plan = b'{"table": "x",   "b":1}'
    assert await loads.ledger.set_plan(upload_id, taken.run, plan, "webhook_events") == plan
    await loads.load(upload_id, taken.run, figures(1, 10, 25, rows=3, rejected={"bad_uuid": 2}))
    again = await loads.take(upload_id, size_bytes=7777)  # the row's values stand
    assert (again.run, again.plan) == (2, plan)
    (segment,) = again.segments
    assert (segment.number, segment.start, segment.end, segment.rows_inserted) == (1, 10, 25, 3)
    assert segment.rejected == {"bad_uuid": 2}
    row = await loads.ledger.get(upload_id)
    assert before is not None
    assert row is not None
    assert row.started_at == before.started_at
    assert row.size_bytes == 100


async def test_a_plan_stands_once_rows_were_loaded_by_it(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    assert await loads.ledger.set_plan(upload_id, 1, b'{"a": 1}', "webhook_events") == b'{"a": 1}'
    assert await loads.ledger.set_plan(upload_id, 1, b'{"a": 2}', "webhook_events") == b'{"a": 2}'
    await loads.load(upload_id, 1, figures(0, 0, 10))
    assert await loads.ledger.set_plan(upload_id, 1, b'{"a": 3}', "webhook_events") == b'{"a": 2}'
    await loads.take(upload_id)
    with pytest.raises(RunLost):
        await loads.ledger.set_plan(upload_id, 1, b'{"a": 3}', "webhook_events")


async def test_of_workers_that_take_at_once_each_gets_a_run_and_the_last_one_passes(
    loads: Loads, upload_id: UUID
) -> None:
    taken = await asyncio.gather(*(loads.take(upload_id) for _ in range(6)))
    assert sorted(one.run for one in taken) == [1, 2, 3, 4, 5, 6]
    for run in range(1, 6):
        with pytest.raises(RunLost):
            await loads.load(upload_id, run, figures(0, 0, 100))
    await loads.load(upload_id, 6, figures(0, 0, 100))


async def test_totals_are_sums_over_the_segments(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    await loads.load(
        upload_id,
        1,
        figures(0, 0, 10, rows=3, rejected={"bad_uuid": 2, "nul": 1}),
        figures(1, 10, 30, rows=4, rejected={"bad_uuid": 5}),
        figures(4, 40, 50, rows=1),
    )
    row = await loads.ledger.get(upload_id)
    assert row is not None
    assert (row.segments, row.committed_bytes, row.progress) == (3, 40, 0.4)
    assert (row.rows_read, row.rows_inserted, row.rows_processed, row.rows_failed) == (16, 8, 8, 8)
    assert row.rejected == {"bad_uuid": 7, "nul": 1}
    assert row.rows_read == row.rows_processed + row.rows_failed


async def test_complete_wants_every_byte_once(loads: Loads) -> None:
    cases = {
        "nothing": ([], 0),
        "the end is missing": ([figures(0, 0, 60)], 60),
        "the start is missing": ([figures(1, 10, 100)], 0),
        "a gap": ([figures(0, 0, 40), figures(2, 50, 100)], 40),
        "an overlap": ([figures(0, 0, 60), figures(2, 50, 100)], 60),
        "too far": ([figures(0, 0, 101)], 101),
        "out of order": ([figures(1, 0, 50), figures(0, 50, 100)], 0),
    }
    for name, (segments, covered) in cases.items():
        upload_id = uuid4()
        await loads.take(upload_id)
        await loads.load(upload_id, 1, *segments)
        with pytest.raises(Failure) as failed:
            await loads.ledger.complete(upload_id, 1)
        assert failed.value.code == "ledger_incomplete", name
        assert failed.value.extra == {"coveredBytes": covered, "sizeBytes": 100}, name
        row = await loads.ledger.get(upload_id)
        assert row is not None
        assert row.state == "processing", name
        assert row.progress < 1, name


async def test_complete_ends_the_upload_for_good(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    await loads.load(upload_id, 1, figures(0, 0, 40, rows=5), figures(3, 40, 100, rows=6))
    row = await loads.ledger.complete(upload_id, 1)
    assert (row.state, row.rows_inserted, row.segments, row.progress) == ("completed", 11, 2, 1.0)
    assert row.ended_at is not None
    assert row == await loads.ledger.get(upload_id)
    assert await loads.take_or_ended(upload_id) == Ended(row)
    assert await loads.ledger.has_ended(upload_id)
    assert not await loads.ledger.has_ended(uuid4())
    with pytest.raises(RunLost):
        await loads.ledger.complete(upload_id, 1)
    with pytest.raises(RunLost):
        await loads.ledger.fail(upload_id, 1, code="internal_error", message="too late")
    with pytest.raises(RunLost):
        await loads.load(upload_id, 1, figures(5, 100, 110))
    with pytest.raises(Failure) as failed:
        await loads.ledger.reopen(upload_id)
    assert failed.value.code == "upload_not_failed"


async def test_an_empty_file_is_covered_by_nothing(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id, size_bytes=0)
    assert (await loads.ledger.complete(upload_id, 1)).state == "completed"


async def test_a_compressed_file_is_covered_when_its_end_is_known(loads: Loads, upload_id: UUID) -> None:
    taken = await loads.ledger.take(replace(loads.intake(upload_id, size_bytes=10), compressed=True))
    assert isinstance(taken, Taken)
    await loads.load(upload_id, 1, figures(0, 0, 40, rows=5), figures(3, 40, 100, rows=6))
    row = await loads.ledger.get(upload_id)
    assert row is not None
    assert (row.size_bytes, row.decoded_bytes, row.progress) == (10, None, 0)
    assert replace(row, expected_bytes=400).progress == 0.25
    for decoded_bytes in (None, 10, 99, 101):
        with pytest.raises(Failure) as failed:
            await loads.ledger.complete(upload_id, 1, decoded_bytes=decoded_bytes)
        assert (failed.value.code, failed.value.extra["coveredBytes"]) == ("ledger_incomplete", 100)
    row = await loads.ledger.complete(upload_id, 1, decoded_bytes=100)
    assert (row.state, row.size_bytes, row.decoded_bytes, row.progress) == ("completed", 10, 100, 1)


async def test_what_a_plain_file_has_to_cover_is_nobody_elses_to_say(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    await loads.load(upload_id, 1, figures(0, 0, 40))
    with pytest.raises(Failure) as failed:
        await loads.ledger.complete(upload_id, 1, decoded_bytes=40)
    assert failed.value.extra == {"coveredBytes": 40, "sizeBytes": 100}


async def test_only_the_current_run_may_end_an_upload(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    await loads.load(upload_id, 1, figures(0, 0, 100))
    await loads.take(upload_id)
    with pytest.raises(RunLost):
        await loads.ledger.complete(upload_id, 1)
    with pytest.raises(RunLost):
        await loads.ledger.fail(upload_id, 1, code="internal_error", message="x")
    assert (await loads.ledger.complete(upload_id, 2)).state == "completed"


async def test_a_failed_load_keeps_its_counts_and_can_be_retried(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    await loads.load(upload_id, 1, figures(0, 0, 40, rows=5, rejected={"bad_json": 1}))
    failed = await loads.ledger.fail(
        upload_id,
        1,
        code="constraint_violated",
        message="duplicate key \0 \ud800 \\u0000",
        extra={"line": 7, "x": ["\0"]},
    )
    assert failed.error == {
        "code": "constraint_violated",
        "message": "duplicate key � ? \\u0000",
        "line": 7,
        "x": ["�"],
    }
    assert (failed.state, failed.rows_inserted, failed.rejected) == ("failed", 5, {"bad_json": 1})
    assert await loads.take_or_ended(upload_id) == Ended(failed)

    reopened = await loads.ledger.reopen(upload_id)
    assert (reopened.state, reopened.error, reopened.ended_at, reopened.rows_inserted) == ("uploaded", None, None, 5)
    with pytest.raises(RunLost):
        await loads.load(upload_id, 1, figures(1, 40, 100))
    taken = await loads.take(upload_id)
    assert taken.run == 2
    assert [segment.number for segment in taken.segments] == [0]
    await loads.load(upload_id, 2, figures(1, 40, 100, rows=2))
    assert (await loads.ledger.complete(upload_id, 2)).rows_inserted == 7


async def test_of_retries_at_once_one_succeeds(loads: Loads, upload_id: UUID) -> None:
    with pytest.raises(Failure) as missing:
        await loads.ledger.reopen(upload_id)
    assert missing.value.code == "upload_not_found"
    await loads.take(upload_id)
    await loads.ledger.fail(upload_id, 1, code="internal_error", message="x")
    results = await asyncio.gather(*(loads.ledger.reopen(upload_id) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(result, UploadRow) for result in results) == 1
    assert {result.code for result in results if isinstance(result, Failure)} == {"upload_not_failed"}


async def test_what_is_cancelled_or_expired_stays_so(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    connection = await asyncpg.connect(loads.settings.database_url.get_secret_value())
    for state in ("cancelled", "expired"):
        await connection.execute("UPDATE stream_api.uploads SET state = $1", state)
        with pytest.raises(Failure) as failed:
            await loads.ledger.reopen(upload_id)
        assert failed.value.code == "upload_gone"
        assert isinstance(await loads.take_or_ended(upload_id), Ended)
        with pytest.raises(RunLost):
            await loads.load(upload_id, 1, figures(0, 0, 100))
    await connection.close()


async def test_segments_of_a_table_that_was_dropped_do_not_count(loads: Loads, upload_id: UUID) -> None:
    connection = await asyncpg.connect(loads.settings.database_url.get_secret_value())
    await connection.execute('CREATE SCHEMA "Odd"; CREATE TABLE "Odd"."Target" (a int)')
    table = '"Odd"."Target"'
    await loads.take(upload_id, table=table)
    await loads.load(upload_id, 1, figures(0, 0, 40, rows=5), table=table)

    # While the name means nothing, nothing is known: it may come back.
    await connection.execute('ALTER TABLE "Odd"."Target" RENAME TO "Away"')
    assert len((await loads.take(upload_id)).segments) == 1
    await connection.execute('ALTER TABLE "Odd"."Away" RENAME TO "Target"')
    assert len((await loads.take(upload_id)).segments) == 1

    await connection.execute('DROP TABLE "Odd"."Target"; CREATE TABLE "Odd"."Target" (a int)')
    await loads.load(upload_id, 3, figures(1, 40, 100), table=table)
    with pytest.raises(Failure) as failed:
        await loads.ledger.complete(upload_id, 3)
    assert failed.value.extra["coveredBytes"] == 0
    taken = await loads.take(upload_id)
    assert [segment.number for segment in taken.segments] == [1]
    await loads.load(upload_id, 4, figures(0, 0, 40, rows=5), table=table)
    assert (await loads.ledger.complete(upload_id, 4)).rows_inserted == 5
    await connection.close()


async def test_completing_is_durable_whatever_the_database_says(loads: Loads, upload_id: UUID) -> None:
    connection = await asyncpg.connect(loads.settings.database_url.get_secret_value())
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_isolation = serializable')
    await connection.close()
    async with using(loads.ledger._pool) as session:
        assert await session.fetchval("SHOW synchronous_commit") == "on"
        assert await session.fetchval("SHOW transaction_isolation") == "read committed"
    lane = await loads.lane(upload_id, 1)
    assert await lane.fetchval("SHOW synchronous_commit") == "off"
    await lane.close()
