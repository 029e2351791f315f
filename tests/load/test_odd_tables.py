"""Random files into a table of everything that can refuse, drop or change a row, against rows that go in one by one."""

from __future__ import annotations

import random
from collections import Counter

import asyncpg
import pytest

from stream_api.config import Settings
from stream_api.options import Conflict, Mode, Options
from tests.load.conftest import Loading, open_loading
from tests.support.settings import change

TRIGGER = """
CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.v = 13 THEN RETURN NULL; END IF;
    IF NEW.v = 14 THEN NEW.id := NEW.id + 1; END IF;
    IF NEW.v = 15 THEN RAISE EXCEPTION 'no'; END IF;
    RETURN NEW;
END $$
"""
TABLE = """
CREATE TABLE {0} (
    id int PRIMARY KEY, v int CHECK (v < 90), g int GENERATED ALWAYS AS (v / 7) STORED, w int, x text,
    UNIQUE (w) DEFERRABLE INITIALLY DEFERRED);
CREATE UNIQUE INDEX ON {0} (lower(x)) WHERE v > 10;
CREATE TRIGGER odd BEFORE INSERT OR UPDATE ON {0} FOR EACH ROW EXECUTE FUNCTION odd()
"""
ENDS = {
    "error": "",
    "skip": "ON CONFLICT (id) DO NOTHING",
    "update": "ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v, w = EXCLUDED.w, x = EXCLUDED.x",
}


async def one_by_one(
    loading: Loading, rows: list[tuple[int, int, int | None, str]], conflict: Conflict
) -> Counter[str]:
    counts = Counter[str]()
    insert = f"INSERT INTO model (id, v, w, x) VALUES ($1, $2, $3, $4) {ENDS[conflict]}"
    async with loading.pool.acquire() as connection:
        for row in rows:
            before = await connection.fetchval("SELECT count(*) FROM model")
            try:
                changed = len(await connection.fetch(f"{insert} RETURNING id", *row))
            except asyncpg.PostgresError:
                counts["failed"] += 1
                continue
            more = await connection.fetchval("SELECT count(*) FROM model") - before
            counts["inserted" if more else "updated" if changed else "skipped"] += 1
    return counts


@pytest.mark.parametrize("segment_bytes", [1, 700, 100_000])
@pytest.mark.parametrize("conflict", ENDS)
@pytest.mark.parametrize("mode", ["append", "atomic", "replace"])
async def test_as_if_rows_went_in_one_by_one(
    settings: Settings, mode: Mode, conflict: Conflict, segment_bytes: int
) -> None:
    choice = random.Random(segment_bytes)
    # Which of two rows that are in each other's way is refused depends on the lanes where nothing keeps their order.
    lanes = 1 if (mode, conflict) == ("append", "error") else 3
    async with open_loading(change(settings, lanes=lanes)) as loading:
        await loading.execute(
            f"DROP TABLE webhook_events; {TRIGGER}; {TABLE.format('webhook_events')}; {TABLE.format('model')}"
        )
        letters = "abcdefghijABCDEFGHIJ"
        rows = [
            (
                choice.randrange(60),
                choice.randrange(100),
                choice.choice([None, choice.randrange(80)]),
                choice.choice(letters) + choice.choice("xyz"),
            )
            for _ in range(120)
        ]
        expected = await one_by_one(loading, rows, conflict)
        lines = ["id,v,w,x", *(f"{a},{b},{'' if c is None else c},{d}" for a, b, c, d in rows), ""]
        options = Options(mode=mode, conflict=conflict)
        row = await loading.load(
            await loading.stored("\n".join(lines).encode(), segment_bytes=segment_bytes, options=options)
        )
        assert row.state == "completed", row.error
        found = Counter(
            inserted=row.rows_inserted, updated=row.rows_updated, skipped=row.rows_skipped, failed=row.rows_failed
        )
        assert found == expected
        everything = "SELECT * FROM {} ORDER BY id"
        assert await loading.fetch(everything.format("webhook_events")) == await loading.fetch(
            everything.format("model")
        )
