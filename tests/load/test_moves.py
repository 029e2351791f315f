"""The move of a staged load beside what others do to its tables, and constraints that look at several rows."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from stream_api.config import Settings
from stream_api.ledger.expiry import Expiry
from stream_api.ledger.rows import UploadRow
from stream_api.ledger.staging import staging_name
from stream_api.load.moving import Mover
from stream_api.load.staged import prepare_staging
from stream_api.options import Conflict, Options
from tests.load.conftest import HEADER, Loading, event, events, open_loading


@pytest.mark.parametrize("dry_run", [False, True])
async def test_somebody_reads_the_staging_table(
    loading: Loading, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    """A dump of the database does, for hours: neither the load nor who waits for the target waits for that."""
    manifest = await loading.stored(events(range(50)), options=Options(mode="atomic", dry_run=dry_run))
    async with loading.pool.acquire() as dump, asyncio.timeout(30):
        transaction = dump.transaction()
        await transaction.start()

        async def prepared(*args: object, **rest: object) -> None:
            await prepare_staging(*args, **rest)  # type: ignore[arg-type]
            await dump.execute(f"LOCK TABLE {staging_name(manifest.upload_id)} IN ACCESS SHARE MODE")

        monkeypatch.setattr("stream_api.load.loader.prepare_staging", prepared)
        row = await loading.load(manifest)
        assert (row.state, await loading.count()) == ("completed", 0 if dry_run else 50)
        assert (row.rows_staged, row.rows_valid + row.rows_inserted) == (0, 50)
        await transaction.rollback()
    assert (await Expiry(loading.pool).drop_staging(), await Expiry(loading.pool).drop_staging()) == (1, 0)


@pytest.mark.parametrize("conflict", ["error", "update"])
@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("lacking", [False, True])
async def test_others_refer_to_what_is_replaced_and_look_later(
    loading: Loading, conflict: Conflict, bad: bool, lacking: bool
) -> None:
    """Whether the old rows may go is seen when the new ones are there, and a bad row changes nothing about it."""
    await loading.execute(
        "DROP TABLE webhook_events; CREATE TABLE webhook_events (id int PRIMARY KEY, v int CHECK (v < 100)); "
        "INSERT INTO webhook_events SELECT n, 1 FROM generate_series(1, 10) AS n; "
        "CREATE TABLE referring (id int REFERENCES webhook_events DEFERRABLE INITIALLY DEFERRED); "
        "INSERT INTO referring VALUES (5)"
    )
    rows = [b"%d,2\n" % number for number in range(1, 30) if not (lacking and number == 5)]
    data = b"id,v\n" + b"".join(rows) + (b"50,500\n" if bad else b"")
    options = Options(mode="replace", conflict=conflict)
    row = await loading.load(await loading.stored(data, segment_bytes=20, options=options))
    if lacking:
        assert row.error is not None
        assert (row.state, row.error["code"], await loading.count()) == ("failed", "replace_refused", 10)
    else:
        assert (row.state, row.rows_inserted, await loading.count()) == ("completed", 29, 29)
        assert row.rejected == ({"check_violated": 1} if bad else {})


async def test_rows_that_a_policy_hides_are_not_left_behind(settings: Settings) -> None:
    async with open_loading(settings) as loading:
        database = await loading.value("SELECT current_database()")
        await loading.load(await loading.stored(events(range(10))))
        await loading.execute(
            "DROP ROLE IF EXISTS seeing_some; CREATE ROLE seeing_some; "
            "GRANT ALL ON SCHEMA stream_api TO seeing_some; GRANT ALL ON webhook_events TO seeing_some; "
            "GRANT ALL ON ALL TABLES IN SCHEMA stream_api TO seeing_some; "
            "ALTER TABLE webhook_events ENABLE ROW LEVEL SECURITY; "
            "CREATE POLICY some_rows ON webhook_events USING (amount > 5) WITH CHECK (true)"
        )
        manifest = await loading.stored(HEADER + event(20), options=Options(mode="replace"))
        await loading.execute(f"ALTER DATABASE {database} SET role = seeing_some")
        async with open_loading(settings) as limited:
            row = await limited.load(manifest)
        await loading.execute(f"ALTER DATABASE {database} RESET role; DROP OWNED BY seeing_some; DROP ROLE seeing_some")
        assert row.error is not None
        assert (row.state, row.error["code"]) == ("failed", "table_denied")
        assert "row-level security" in row.error["message"]
        assert await loading.count() == 10


@pytest.mark.parametrize("options", [Options(mode="atomic"), Options(mode="replace"), Options(dry_run=True)])
@pytest.mark.parametrize("conflict", ["error", "skip", "update"])
@pytest.mark.parametrize("forwards", [False, True])
async def test_a_bad_row_costs_no_row_that_refers_to_other_segments(
    loading: Loading, options: Options, conflict: Conflict, forwards: bool
) -> None:
    await loading.execute(
        "DROP TABLE webhook_events; "
        "CREATE TABLE webhook_events (id int PRIMARY KEY, parent int REFERENCES webhook_events)"
    )
    chain = [f"{number},{number + 1}\n".encode() for number in range(300)] + [b"300,\n"]
    if not forwards:
        chain.reverse()
    bad = [b"1000,999\n", b"1001,1000\n"]
    rows = [*chain[:100], bad[1], *chain[100:200], bad[0], *chain[200:]]
    options = msgspec.structs.replace(options, conflict=conflict)
    manifest = await loading.stored(b"id,parent\n" + b"".join(rows), segment_bytes=200, options=options)
    row = await loading.load(manifest)
    assert (row.state, row.rows_inserted + row.rows_valid) == ("completed", 301)
    assert row.rejected == {"foreign_key_violated": 2}
    assert await loading.original(row.id) == b"id,parent\n" + bad[1] + bad[0]
    assert await loading.count() == (0 if options.dry_run else 301)


@pytest.mark.parametrize(
    "harm",
    [
        "TRUNCATE {0}",
        "DELETE FROM {0} WHERE line % 2 = 0",
        "ALTER TABLE {0} DROP c1",
        "ALTER TABLE {0} RENAME TO of_another",
        "DROP TABLE {0}; CREATE TABLE {0} (c0 int, c1 text, line bigint)",
    ],
)
async def test_somebody_lays_hands_on_the_staging_table(
    loading: Loading, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """Before the move: the load begins anew."""
    manifest = await loading.stored(events(range(100)), segment_bytes=1000, options=Options(mode="atomic"))
    move, moves = Mover.move, list[int]()

    async def harmed(self: Mover, *rest: Any) -> UploadRow:
        moves.append(1)
        if len(moves) == 1:
            await loading.execute(harm.format(staging_name(manifest.upload_id)))
        return await move(self, *rest)

    monkeypatch.setattr(Mover, "move", harmed)
    row = await loading.load(manifest)
    assert (row.state, row.rows_inserted, await loading.count()) == ("completed", 100, 100)
    assert len(moves) == 2
