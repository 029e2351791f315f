"""Tables that change while a load is under way: no row goes into a column that the plan was not made for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from stream_api.config import Settings
from stream_api.ledger.segments import claim_segment
from stream_api.options import Options
from tests.load.conftest import open_loading
from tests.support.settings import change

#: Whose binary forms look alike, which COPY cannot tell; what an assignment would cast; what it would not.
RETYPED = [
    ("int", "date USING '2020-01-01'"),
    ("bigint", "double precision"),
    ("numeric(9,2)", "int"),
    ("text", "bytea USING v::bytea"),
]
CHANGES = [
    *((was, f"ALTER v TYPE {now}") for was, now in RETYPED),
    ("int", "ADD w int NOT NULL DEFAULT 1; ALTER TABLE webhook_events ALTER w DROP DEFAULT"),
    ("int", "DROP v"),
]
WAYS = {
    "append": Options(),
    "update": Options(conflict="update"),
    "atomic": Options(mode="atomic"),
    "replace": Options(mode="replace", conflict="skip"),
}
FILE = b"id,v\n" + b"".join(f"{number},{number}\n".encode() for number in range(1000, 1300))


@pytest.mark.parametrize(("was", "changed"), CHANGES)
@pytest.mark.parametrize("way", WAYS)
async def test_it_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch, way: str, was: str, changed: str) -> None:
    async with open_loading(change(settings, lanes=1)) as loading:
        await loading.execute(
            f"DROP TABLE webhook_events; CREATE TABLE webhook_events (id int PRIMARY KEY, v {was}); "
            "INSERT INTO webhook_events (id) VALUES (1)"
        )
        done = list[int]()

        async def changing(connection: asyncpg.Connection, *rest: object) -> bool:
            done.append(1)
            if len(done) == 20:
                await loading.execute(f"ALTER TABLE webhook_events {changed}")
            return await claim_segment(connection, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr("stream_api.load.claiming.claim_segment", changing)
        manifest = await loading.stored(FILE, segment_bytes=100, options=WAYS[way])
        row = await loading.load(manifest)
        assert row.error is not None
        assert (row.state, row.error["code"]) == ("failed", "plan_changed")
        assert row.rows_read == row.rows_inserted + row.rows_staged
        assert (row.rows_failed, await loading.count()) == (0, row.rows_inserted + 1)


async def test_what_does_not_concern_the_plan_is_no_matter(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_loading(change(settings, lanes=1)) as loading:
        await loading.execute("DROP TABLE webhook_events; CREATE TABLE webhook_events (id int PRIMARY KEY, v int)")
        done = list[int]()

        async def changing(connection: asyncpg.Connection, *rest: object) -> bool:
            done.append(1)
            if len(done) == 20:
                await loading.execute("ALTER TABLE webhook_events ADD w text DEFAULT 'w'")
            return await claim_segment(connection, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr("stream_api.load.claiming.claim_segment", changing)
        row = await loading.load(await loading.stored(FILE, segment_bytes=100))
        assert (row.state, row.rows_inserted, await loading.count()) == ("completed", 300, 300)


async def test_after_pg_restore_a_load_goes_on_where_it_was(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_loading(change(settings, lanes=1)) as loading:
        # Without a key, so that nothing hides a row that is there twice.
        await loading.execute("DROP TABLE webhook_events; CREATE TABLE webhook_events (id int, v int)")
        claims, reached = list[int](), asyncio.Event()

        async def standing_still(connection: asyncpg.Connection, *rest: object) -> bool:
            claims.append(1)
            if len(claims) == 20:
                reached.set()
                await asyncio.Event().wait()
            return await claim_segment(connection, *rest)  # type: ignore[arg-type]

        with monkeypatch.context() as patched:
            patched.setattr("stream_api.load.claiming.claim_segment", standing_still)
            manifest = await loading.stored(FILE, segment_bytes=100)
            load = asyncio.create_task(loading.load(manifest))
            await asyncio.wait({load, asyncio.create_task(reached.wait())}, return_when=asyncio.FIRST_COMPLETED)
            load.cancel()
            with suppress(asyncio.CancelledError):
                await load
        assert 0 < await loading.count() < 300
        # What pg_restore makes of a table: the same rows under another number.
        await loading.execute("CREATE TABLE made AS TABLE webhook_events; DROP TABLE webhook_events")
        await loading.execute("ALTER TABLE made RENAME TO webhook_events")
        await loading.execute((Path(__file__).parents[2] / "deploy" / "after_pg_restore.sql").read_text())
        row = await loading.load(manifest)
        assert (row.state, row.rows_inserted, await loading.count()) == ("completed", 300, 300)


async def test_a_constraint_that_comes_with_the_commit_costs_one_row(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was not there when the load began, so that nobody asks for it earlier."""
    async with open_loading(change(settings, lanes=1)) as loading:
        await loading.execute(
            "DROP TABLE webhook_events; CREATE TABLE webhook_events (id int PRIMARY KEY, v int);"
            "CREATE TABLE owners (v int PRIMARY KEY); INSERT INTO owners SELECT generate_series(1000, 1298)"
        )
        done = list[int]()

        async def changing(connection: asyncpg.Connection, *rest: object) -> bool:
            done.append(1)
            if len(done) == 20:
                await loading.execute(
                    "ALTER TABLE webhook_events ADD FOREIGN KEY (v) REFERENCES owners DEFERRABLE INITIALLY DEFERRED"
                )
            return await claim_segment(connection, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr("stream_api.load.claiming.claim_segment", changing)
        manifest = await loading.stored(FILE, segment_bytes=100)
        row = await loading.load(manifest)
        assert (row.state, row.rows_inserted, row.rejected) == ("completed", 299, {"foreign_key_violated": 1})
        assert await loading.count() == 299
        assert [one["line"] for one in await loading.rejects(manifest.upload_id)] == ["301"]
