"""Rows whose key the table has: `conflict`, whatever segments, lanes, crashes and retries there are."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import pytest

from stream_api.config import Settings
from stream_api.datasets.dataset import Dataset, built_in
from stream_api.ledger.rows import UploadRow
from stream_api.load.loader import intake_of
from stream_api.options import Options
from tests.load.behind import SEGMENT_BYTES, Behind, behind_proxies, ended_for_now
from tests.load.conftest import HEADER, Loading, event, events, open_loading
from tests.support.settings import change

SKIP = Options(conflict="skip")
UPDATE = Options(conflict="update")


@pytest.fixture
async def behind(settings: Settings) -> AsyncIterator[Behind]:
    async with behind_proxies(settings) as made:
        yield made


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


@dataclass
class Model:
    """A table, and rows that go into it one by one."""

    conflict: str
    #: Rows are looked at only once they are in.
    after: bool
    rows: dict[int, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, key: int, value: str) -> None:
        if value.startswith("bad") and not (self.after and self.conflict == "skip" and key in self.rows):
            self.counts["failed"] += 1
            return
        self.counts["inserted" if key not in self.rows else "updated" if self.conflict == "update" else "skipped"] += 1
        if key not in self.rows or self.conflict == "update":
            self.rows[key] = value


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
    loading: Loading, beside: str, conflict: Literal["skip", "update"], segment_bytes: int
) -> None:
    if BESIDE[beside]:
        await loading.execute(BESIDE[beside])
    draw = random.Random(f"{beside} {conflict} {segment_bytes}")
    model = Model(conflict, beside == "after")
    # Into the empty table, and then onto what is there.
    for count in (20, 30) if segment_bytes == 1 else (60, 200):
        records, before = [], Counter(model.counts)
        for number in range(count):
            key = draw.randrange(count // 2)
            bad = beside not in {"nothing", "partitions"} and draw.random() < 0.05
            value = f"{'bad' if bad else 'row'}-{number}"
            model.add(key, value)
            # Some rows have no binary form, and keep their place all the same.
            records.append(event(key, event_type=value, amount=" 5" if draw.random() < 0.2 else "6"))
        data = HEADER + b"".join(records)
        row = await load(loading, data, options=Options(conflict=conflict), segment_bytes=segment_bytes)
        counts = {
            "inserted": row.rows_inserted,
            "updated": row.rows_updated,
            "skipped": row.rows_skipped,
            "failed": row.rows_failed,
        }
        assert +Counter(counts) == model.counts - before
        assert await loading.fetch("SELECT event_type FROM webhook_events ORDER BY id") == [
            (model.rows[key],) for key in sorted(model.rows)
        ]
        refused = (await loading.original(row.id)).removeprefix(HEADER).splitlines(keepends=True)
        assert len(refused) == row.rows_failed
        assert set(refused) <= {record for record in records if b",bad-" in record}


async def test_a_key_with_null_is_nobody_elses(loading: Loading) -> None:
    await loading.execute(
        "DROP TABLE webhook_events; CREATE TABLE webhook_events (a int, b int, v text, UNIQUE (b, a)); "
    )
    data = b"A,b,v\n" + b"1,,x\n1,,y\n,,z\n,,z\n1,1,p\n1,1,q\n"
    options = Options(conflict="update", key=("a", "B"))
    assert figures(await load(loading, data, options=options)) == (5, 1, 0, {})
    assert figures(await load(loading, data, options=msgspec.structs.replace(options, conflict="skip"))) == (
        4,
        0,
        2,
        {},
    )
    assert await loading.fetch("SELECT v FROM webhook_events WHERE a = 1 AND b = 1") == [("q",)]


@pytest.mark.parametrize("segment_bytes", [1, 200_000])
@pytest.mark.parametrize(("type_name", "first", "last"), [("numeric", "1.0", "1.00"), ("interval", "1 mon", "30 days")])
async def test_equal_keys_that_look_different(
    loading: Loading, segment_bytes: int, type_name: str, first: str, last: str
) -> None:
    """The key stays as the first row has it, wherever the file is cut."""
    await loading.execute(f"DROP TABLE webhook_events; CREATE TABLE webhook_events (id {type_name} PRIMARY KEY, v int)")
    data = f"id,v\n{first},1\n{last},2\n".encode()
    row = await load(loading, data, options=UPDATE, segment_bytes=segment_bytes)
    assert figures(row) == (1, 1, 0, {})
    assert await loading.fetch("SELECT id::text, v FROM webhook_events") == [(first, 2)]


async def test_other_constraints_reject_their_rows(loading: Loading) -> None:
    """Another unique index is no conflict; the records come from the file."""
    await loading.execute("ALTER TABLE webhook_events ADD UNIQUE (event_type), ADD CHECK (amount < 1000)")
    await load(loading, HEADER + event(1, event_type="one") + event(2, event_type="two"))
    records = [
        event(1, event_type="two"),
        event(3, event_type="three", amount="5000"),
        b"too,few\n",
        event(2, event_type="new"),
        event(4, event_type="two"),
        event(5, occurred_at="never"),
        event(6, event_type="new"),
    ]
    row = await load(loading, HEADER + b"".join(records), options=UPDATE)
    assert figures(row) == (
        1,
        1,
        0,
        {"duplicate_key": 2, "check_violated": 1, "wrong_field_count": 1, "invalid_date": 1},
    )
    codes = [each["code"] for each in await loading.rejects(row.id)]
    assert codes == ["duplicate_key", "check_violated", "wrong_field_count", "invalid_date", "duplicate_key"]
    refused = [record for number, record in enumerate(records) if number not in {3, 4}]
    assert await loading.original(row.id) == HEADER + b"".join(refused)
    assert [each["line"] for each in await loading.rejects(row.id)] == ["2", "3", "4", "7", "8"]


async def test_triggers_that_drop_rows(loading: Loading) -> None:
    await loading.execute(
        "CREATE FUNCTION drop_some() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RETURN CASE WHEN NEW.status <> lower(TG_OP) THEN NEW END; END $$; "
        "CREATE TRIGGER drop_some BEFORE INSERT OR UPDATE ON webhook_events FOR EACH ROW EXECUTE FUNCTION drop_some()"
    )
    records = [event(1), event(2, status="insert"), event(1, status="update"), event(1, status="new"), event(3)]
    row = await load(loading, HEADER + b"".join(records), options=UPDATE)
    assert figures(row) == (2, 1, 2, {})
    assert await loading.fetch("SELECT status FROM webhook_events ORDER BY id") == [("new",), ("ok",)]


async def test_only_the_columns_of_the_file_are_updated(loading: Loading) -> None:
    await loading.execute(
        "DROP TABLE webhook_events; CREATE TABLE webhook_events "
        "(id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, v text, w text DEFAULT 'd', "
        "twice int GENERATED ALWAYS AS (id * 2) STORED)"
    )
    await load(loading, b"id,n,v,w\n1,10,a,b\n2,20,c,d\n")
    assert figures(await load(loading, b"id,v,n\n1,x,11\n3,y,30\n", options=UPDATE)) == (1, 1, 0, {})
    # The file has only the key: nothing is to be set.
    assert figures(await load(loading, b"id\n1\n", options=UPDATE)) == (0, 1, 0, {})
    assert await loading.fetch("SELECT * FROM webhook_events ORDER BY id") == [
        (1, 10, "x", "b", 2),
        (2, 20, "c", "d", 4),
        (3, 30, "y", "d", 6),
    ]


async def test_rows_that_refer_to_rows_of_their_table(loading: Loading) -> None:
    await loading.execute(
        "DROP TABLE webhook_events; "
        "CREATE TABLE webhook_events (id int PRIMARY KEY, parent int REFERENCES webhook_events, v text)"
    )
    # Row 1 waits for its parent; row 3 has another of its key behind it, whose place it may not take.
    data = b"id,parent,v\n1,2,a\n3,2,b\n9,999,x\n3,,c\n2,,d\n"
    row = await load(loading, data, options=UPDATE)
    assert figures(row) == (3, 0, 0, {"foreign_key_violated": 2})
    assert await loading.fetch("SELECT * FROM webhook_events ORDER BY id") == [
        (1, 2, "a"),
        (2, None, "d"),
        (3, None, "c"),
    ]


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        ("(id int, v int)", Options(conflict="skip"), "nor another unique index"),
        ("(id int UNIQUE, v int)", Options(conflict="skip"), "but unique indexes on (id)"),
        ("(id int PRIMARY KEY, v int)", Options(conflict="skip", key=("v",)), "no unique index on exactly (v)"),
        (
            "(id int PRIMARY KEY, v int)",
            Options(conflict="skip", key=("id", "v")),
            "no unique index on exactly (id, v)",
        ),
        ("(id int PRIMARY KEY, v int)", Options(conflict="skip", key=("x",)), "no column 'x'"),
        ("(id int PRIMARY KEY, v int)", Options(conflict="skip", key=("id", "ID")), "a column twice"),
        ("(id int PRIMARY KEY DEFERRABLE, v int)", Options(conflict="update"), "has no primary key"),
        ("(k int PRIMARY KEY DEFAULT 1, id int, v int)", Options(conflict="update"), "does not fill: (k)"),
    ],
)
async def test_a_key_that_is_none(loading: Loading, table: str, options: Options, says: str) -> None:
    await loading.execute(f"DROP TABLE webhook_events; CREATE TABLE webhook_events {table}")
    row = await loading.load(await loading.stored(b"id,v\n1,1\n", options=options))
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", "conflict_key_invalid")
    assert says in row.error["message"]


async def test_a_partial_index_is_no_key(loading: Loading) -> None:
    await loading.execute("CREATE UNIQUE INDEX ON webhook_events (source) WHERE status = 'x'")
    row = await loading.load(await loading.stored(events(range(1)), options=Options(conflict="skip", key=("source",))))
    assert row.error is not None
    assert row.error["code"] == "conflict_key_invalid"
    assert row.error["uniqueKeys"] == [["id"]]


async def test_the_dataset_decides_where_the_upload_says_nothing(settings: Settings) -> None:
    dataset = Dataset(name="events", table="webhook_events", conflict="skip", key=("id",))
    async with open_loading(settings, {"events": dataset}) as loading:
        for options, expected in ((None, (3, 0, 0, {})), (None, (0, 0, 3, {})), (UPDATE, (0, 3, 0, {}))):
            row = await load(loading, events(range(3)), options=options, dataset="events")
            assert figures(row) == expected
            assert json.loads(await loading.value("SELECT plan FROM stream_api.uploads WHERE id = $1", row.id))[
                "key"
            ] == ["id"]


@pytest.mark.parametrize("conflict", ["skip", "update"])
async def test_an_interrupted_load_goes_on_in_order(behind: Behind, conflict: Literal["skip", "update"]) -> None:
    """Of each key the file has many rows in many segments: the outcome shows it if one went in out of turn."""
    rows, keys = 12_000, 500
    data = HEADER + b"".join(event(number % keys, event_type=f"row-{number}") for number in range(rows))
    manifest = await behind.direct.stored(data, segment_bytes=SEGMENT_BYTES, options=Options(conflict=conflict))
    await behind.postgres.throttle(500_000, "up")
    load = await behind.begun(manifest)
    await behind.postgres.drop()
    await ended_for_now(load)
    segments = await behind.direct.ledger.segments(manifest.upload_id)
    assert [segment.number for segment in segments] == list(range(len(segments))), "what is committed is a prefix"
    await behind.postgres.restore()
    row = await behind.direct.load(manifest)
    repeated = rows - keys
    expected = (keys, repeated, 0) if conflict == "update" else (keys, 0, repeated)
    assert (row.state, figures(row)) == ("completed", (*expected, {}))
    first = rows - keys if conflict == "update" else 0
    assert await behind.direct.fetch("SELECT event_type FROM webhook_events ORDER BY id") == [
        (f"row-{number}",) for number in range(first, first + keys)
    ]


async def test_loads_that_update_the_same_rows(settings: Settings) -> None:
    """In opposite orders: where they wait for one another, the segment goes again."""
    numbers = list(range(3000))
    async with open_loading(change(settings, lanes=2)) as one, open_loading(change(settings, lanes=2)) as two:
        await one.execute("ALTER TABLE webhook_events ADD CHECK (amount >= 0)")
        await load(one, events(range(3000)))
        manifests = [
            await one.stored(
                HEADER + b"".join(event(number, source=source) for number in order),
                options=UPDATE,
                segment_bytes=100_000,
            )
            for source, order in (("up", numbers), ("down", numbers[::-1]))
        ]
        rows = await asyncio.gather(one.load(manifests[0]), two.load(manifests[1]))
        assert [(row.state, figures(row)) for row in rows] == [("completed", (0, 3000, 0, {}))] * 2
        assert set(await one.fetch("SELECT source FROM webhook_events")) <= {("down",), ("up",)}
        assert await one.count() == 3000


async def test_a_load_that_is_cancelled(loading: Loading) -> None:
    manifest = await loading.stored(events(range(20_000)), segment_bytes=16 * 1024, options=UPDATE)
    loads = asyncio.create_task(loading.loader.load(manifest.upload_id))
    async with asyncio.timeout(30):
        while not await loading.count():  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0)
    cancelled = await loading.ledger.cancel(intake_of(manifest, built_in("webhook_events")))
    assert cancelled.state == "cancelled"
    await loads
    assert 0 < await loading.count() == cancelled.rows_inserted < 20_000


async def test_a_table_with_rules_cannot_be_merged_into(loading: Loading) -> None:
    await loading.execute("CREATE RULE twice AS ON INSERT TO webhook_events DO ALSO SELECT 1")
    row = await loading.load(await loading.stored(events(range(2)), options=SKIP))
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", "table_denied")
    assert "rules on INSERT" in row.error["message"]


@pytest.mark.parametrize("conflict", ["skip", "update"])
async def test_odd_names(loading: Loading, conflict: Literal["skip", "update"]) -> None:
    odd = '"it\'s {odd} $1 ""x"""'
    await loading.execute(
        f"DROP TABLE webhook_events; CREATE TABLE webhook_events (_row int, {odd} int, _first int, "
        f"_met text, line text, c0 text, PRIMARY KEY (_row, {odd}, _first))"
    )
    header = f"_row,{odd},_first,_met,line,c0\n".encode()
    row = await load(loading, header + b"1,1,1,a,b,c\n1,1,1,d,e,f\n2,1,1,g,h,i\n", options=Options(conflict=conflict))
    assert figures(row) == ((2, 1, 0, {}) if conflict == "update" else (2, 0, 1, {}))
    first = ("d", "e", "f") if conflict == "update" else ("a", "b", "c")
    assert await loading.fetch("SELECT _met, line, c0 FROM webhook_events ORDER BY _row") == [first, ("g", "h", "i")]
