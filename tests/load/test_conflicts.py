"""Rows whose key the table has: `conflict`, whatever segments, lanes, crashes and retries there are."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from stream_api.ledger.rows import UploadRow
from stream_api.options import Options
from tests.load.conftest import HEADER, Loading, event, events, open_loading
from tests.load.test_faults import Behind, behind  # noqa: F401
from tests.support.settings import change

SKIP = Options(conflict="skip")
UPDATE = Options(conflict="update")


async def load(loading: Loading, data: bytes, **options: Any) -> UploadRow:
    """Load a file; its figures add up, and the table holds what was inserted."""
    before = await loading.count()
    row = await loading.load(await loading.stored(data, **options))
    assert row.state == "completed", row.error
    assert row.rows_read == row.rows_processed + row.rows_failed
    assert await loading.count() - before == row.rows_inserted
    return row


def figures(row: UploadRow) -> tuple[int, int, int, dict[str, int]]:
    return row.rows_inserted, row.rows_updated, row.rows_skipped, row.rejected


@pytest.mark.parametrize("segment_bytes", [2000, 200_000])
async def test_the_same_file_twice(loading: Loading, segment_bytes: int) -> None:
    data = events(range(600))
    assert figures(await load(loading, data, options=SKIP, segment_bytes=segment_bytes)) == (600, 0, 0, {})
    assert figures(await load(loading, data, options=SKIP, segment_bytes=segment_bytes)) == (0, 0, 600, {})
    assert figures(await load(loading, data, options=UPDATE, segment_bytes=segment_bytes)) == (0, 600, 0, {})
    row = await load(loading, data, segment_bytes=segment_bytes)
    assert figures(row) == (0, 0, 0, {"duplicate_key": 600})


class Model:
    """A table, and rows that go into it one by one."""

    def __init__(self, conflict: str) -> None:
        self.conflict = conflict
        self.rows: dict[int, str] = {}
        self.inserted = self.updated = self.skipped = self.refused = 0

    def add(self, key: int, value: str) -> None:
        if value.startswith("bad"):
            self.refused += 1
        elif key not in self.rows:
            self.rows[key] = value
            self.inserted += 1
        elif self.conflict == "update":
            self.rows[key] = value
            self.updated += 1
        else:
            self.skipped += 1


#: What a table may have beside its key: whether rows of one key can be told apart then decides how they go in.
BESIDE = {
    "nothing": "",
    "check": "ALTER TABLE webhook_events ADD CHECK (event_type NOT LIKE 'bad%')",
    "before": (
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.event_type LIKE 'bad%' THEN RAISE EXCEPTION 'bad'; END IF; RETURN NEW; END $$; "
        "CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON webhook_events FOR EACH ROW EXECUTE FUNCTION fail()"
    ),
    "after": (
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.event_type LIKE 'bad%' THEN RAISE EXCEPTION 'bad'; END IF; RETURN NEW; END $$; "
        "CREATE TRIGGER fail AFTER INSERT OR UPDATE ON webhook_events FOR EACH ROW EXECUTE FUNCTION fail()"
    ),
    "partitions": (
        "DROP TABLE webhook_events; CREATE TABLE webhook_events (id uuid, event_type text, source text, payload jsonb, "
        "occurred_at timestamptz, amount numeric(12,2), status text, PRIMARY KEY (id)) PARTITION BY HASH (id); "
        "CREATE TABLE one PARTITION OF webhook_events FOR VALUES WITH (MODULUS 2, REMAINDER 0); "
        "CREATE TABLE two (a int, status text, id uuid NOT NULL, event_type text, source text, payload jsonb, "
        "occurred_at timestamptz, amount numeric(12,2)); ALTER TABLE two DROP a; "
        "ALTER TABLE webhook_events ATTACH PARTITION two FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
    ),
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("conflict", ["skip", "update"])
@pytest.mark.parametrize("segment_bytes", [1, 3000, 200_000])
async def test_it_is_as_if_rows_went_in_one_by_one(
    loading: Loading, beside: str, conflict: Any, segment_bytes: int
) -> None:
    if BESIDE[beside]:
        await loading.execute(BESIDE[beside])
    draw = random.Random(f"{beside} {conflict} {segment_bytes}")
    model = Model(conflict)
    for count in (60, 200) if segment_bytes > 1 else (20, 40):
        records = []
        for number in range(count):
            key = draw.randrange(count // 2)
            bad = beside not in {"nothing", "partitions"} and draw.random() < 0.05
            value = f"{'bad' if bad else 'row'}-{number}"
            model.add(key, value)
            # Some rows have no binary form, and keep their place all the same.
            records.append(event(key, event_type=value, amount=" 5" if draw.random() < 0.2 else "6"))
        before = model.inserted, model.updated, model.skipped, model.refused
        row = await load(
            loading, HEADER + b"".join(records), options=Options(conflict=conflict), segment_bytes=segment_bytes
        )
        total = tuple(a + b for a, b in zip(loaded if count > 40 and segment_bytes > 1 and count != 60 else (0,) * 4,
                                            (row.rows_inserted, row.rows_updated, row.rows_skipped, row.rows_failed),
                                            strict=True)) if False else None
        del before, total
