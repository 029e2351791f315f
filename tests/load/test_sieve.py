"""What only Postgres knows of a row: keys, constraints and triggers. The row is rejected, and the rest loads."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from stream_api.config import Settings
from stream_api.ledger.rows import UploadRow
from stream_api.load import inserting
from tests.load.conftest import HEADER, Loading, event, events, open_loading
from tests.support.settings import change

DUPLICATE = 'duplicate key value violates unique constraint "webhook_events_pkey": Key (id)=({}) already exists.'


@pytest.fixture
async def loading(settings: Settings) -> AsyncIterator[Loading]:
    """With one lane: then of two rows with one key the first is the one that stays."""
    async with open_loading(change(settings, lanes=1)) as opened:
        yield opened


async def load(loading: Loading, data: bytes, **options: Any) -> UploadRow:
    """Load a file; its figures add up, and the table holds what was inserted."""
    before = await loading.count()
    row = await loading.load(await loading.stored(data, **options))
    assert row.state == "completed", row.error
    assert row.rows_read == row.rows_processed + row.rows_failed
    assert await loading.count() - before == row.rows_inserted
    rejects = await loading.rejects(row.id)
    assert Counter(each["code"] for each in rejects) == row.rejected
    assert row.first_rejects == [
        {
            "line": int(each["line"]),
            "byteOffset": int(each["byteOffset"]),
            "column": each["column"] or None,
            "code": each["code"],
            "reason": each["reason"],
        }
        for each in rejects[:10]
    ]
    for each in rejects:
        assert data[int(each["byteOffset"]) :].startswith(each["record"].encode())
        assert data[: int(each["byteOffset"])].count(b"\n") == int(each["line"]) - 1
    return row


async def test_a_duplicate_key_costs_one_row(loading: Loading) -> None:
    await load(loading, HEADER + event(70))
    row = await load(loading, events(range(100)), segment_bytes=2000)
    assert (row.rows_read, row.rows_inserted, row.rejected) == (100, 99, {"duplicate_key": 1})
    assert await loading.rejects(row.id) == [
        {
            "line": "72",
            "byteOffset": str(len(events(range(70)))),
            "column": "",
            "code": "duplicate_key",
            "reason": DUPLICATE.format("00000000-0000-4000-8000-000000000046"),
            "record": event(70).decode().removesuffix("\n"),
            "encoding": "utf8",
        }
    ]
    assert await loading.original(row.id) == HEADER + event(70)


async def test_every_row_is_a_duplicate(loading: Loading) -> None:
    data = events(range(3000))
    await load(loading, data, segment_bytes=64 * 1024)
    row = await load(loading, data, segment_bytes=64 * 1024)
    assert (row.rows_read, row.rows_inserted, row.rejected) == (3000, 0, {"duplicate_key": 3000})
    assert await loading.original(row.id) == data


@pytest.mark.parametrize("segment_bytes", [1, 1000, 50_000])
async def test_of_the_rows_with_one_key_the_first_stays(loading: Loading, segment_bytes: int) -> None:
    records = [event(number % 40, event_type=f"number-{number}") for number in range(100)]
    # Rows that only Postgres can read do not lose their place.
    records[3], records[50] = event(3, amount=" 5", event_type="number-3"), event(10, amount=" 6")
    row = await load(loading, HEADER + b"".join(records), segment_bytes=segment_bytes)
    assert (row.rows_inserted, row.rejected) == (40, {"duplicate_key": 60})
    assert [each["line"] for each in await loading.rejects(row.id)] == [str(line) for line in range(42, 102)]
    assert await loading.fetch("SELECT event_type FROM webhook_events ORDER BY id") == [
        (f"number-{number}",) for number in range(40)
    ]


@pytest.mark.parametrize("noted", [0, 1000])
async def test_duplicates_among_all_rows_at_once_are_those_among_some(
    loading: Loading, noted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inserting, "_NOTED", noted)
    # NULL is nobody's key, and rows that the index leaves out have none.
    await loading.execute("""
        ALTER TABLE webhook_events DROP CONSTRAINT webhook_events_pkey;
        CREATE UNIQUE INDEX once ON webhook_events (amount, source) WHERE status <> 'void';
    """)
    await load(loading, HEADER + event(5))
    statuses, amounts = ("ok", "void", "paid"), ("1", "2", "2.00", "", "5.50")
    records = [event(number, amount=amounts[number % 5], status=statuses[number % 3]) for number in range(30)]
    row = await load(loading, HEADER + b"".join(records))
    rejects = await loading.rejects(row.id)
    seen, expected = {"5.50"}, []
    for number in range(30):
        if amounts[number % 5] and statuses[number % 3] != "void":
            key = f"{float(amounts[number % 5]):.2f}"
            if key in seen:
                expected.append((str(number + 2), f"Key (amount, source)=({key}, shop) already exists."))
            seen.add(key)
    assert [(each["line"], each["reason"].partition(": ")[2]) for each in rejects] == expected
    assert await loading.count() == 31 - len(expected)
    # What went in by some, and came out again, has left its place empty.
    places = await loading.fetch("SELECT (ctid::text::point)[1]::int FROM webhook_events ORDER BY ctid")
    last_copy = [place for (place,) in places[1:]]
    assert (last_copy == list(range(last_copy[0], last_copy[0] + len(last_copy)))) == bool(noted)


async def test_many_short_rows_are_duplicates(loading: Loading) -> None:
    """More than are fetched together of one batch."""
    await loading.execute("DROP TABLE webhook_events; CREATE TABLE webhook_events (n int PRIMARY KEY)")
    data = b"n\n" + b"".join(b"%d\n" % number for number in range(10_000))
    await load(loading, data)
    row = await load(loading, data)
    assert row.rejected == {"duplicate_key": 10_000}
    assert await loading.original(row.id) == data


NO_OWNER = (
    'insert or update on table "webhook_events" violates foreign key constraint "to_owner": '
    'Key (status)=(eve) is not present in table "owners".'
)
OWNERS = "CREATE TABLE owners (name text PRIMARY KEY); INSERT INTO owners VALUES ('ada'), ('bob')"


@pytest.mark.parametrize(
    ("alter", "values", "code", "reason"),
    [
        (
            "ADD CHECK (amount < 1000)",
            {"amount": "1000.00"},
            "check_violated",
            'new row for relation "webhook_events" violates check constraint "webhook_events_amount_check"',
        ),
        (
            "ADD CONSTRAINT to_owner FOREIGN KEY (status) REFERENCES owners",
            {"status": "eve"},
            "foreign_key_violated",
            NO_OWNER,
        ),
        (
            "ADD CONSTRAINT to_owner FOREIGN KEY (status) REFERENCES owners DEFERRABLE INITIALLY DEFERRED",
            {"status": "eve"},
            "foreign_key_violated",
            NO_OWNER,
        ),
        (
            "ADD CONSTRAINT apart EXCLUDE USING btree ((event_type || source) WITH =) WHERE (status = 'ada')",
            {"event_type": "order.", "source": "createdshop", "status": "ada"},
            "exclusion_violated",
            'conflicting key value violates exclusion constraint "apart": Key ((event_type || source))=',
        ),
        (
            "ADD CONSTRAINT once UNIQUE (event_type, source) DEFERRABLE INITIALLY DEFERRED",
            {},
            "duplicate_key",
            'duplicate key value violates unique constraint "once": Key (event_type, source)=(order.created, shop)',
        ),
        (
            "ADD inverse numeric GENERATED ALWAYS AS (1 / (amount - 7)) STORED",
            {"amount": "7.00"},
            "invalid_value",
            "division by zero",
        ),
    ],
)
async def test_each_kind_of_constraint(
    loading: Loading, alter: str, values: dict[str, str], code: str, reason: str
) -> None:
    await loading.execute(OWNERS)
    await loading.execute(f"ALTER TABLE webhook_events {alter}")
    good = [event(0, status="ada")]
    good += [event(number, status="bob", event_type=f"type-{number}") for number in range(1, 90)]
    bad = [event(number, **{"status": "bob", **values}) for number in (100, 101)]
    data = HEADER + b"".join([*good[:40], bad[0], *good[40:], bad[1]])
    row = await load(loading, data, segment_bytes=4000)
    assert (row.rows_inserted, row.rejected) == (90, {code: 2})
    rejects = await loading.rejects(row.id)
    assert [each["line"] for each in rejects] == ["42", "93"]
    assert all(each["reason"].startswith(reason) for each in rejects), rejects
    assert await loading.original(row.id) == HEADER + b"".join(bad)


@pytest.mark.parametrize("timing", ["BEFORE", "AFTER"])
@pytest.mark.parametrize("sqlstate", ["P0001", "P0004", "22012", "JX001", "45000"])
async def test_a_trigger_that_raises(loading: Loading, timing: str, sqlstate: str) -> None:
    await loading.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF NEW.status = 'bad' THEN RAISE EXCEPTION 'not today' USING ERRCODE = '{sqlstate}'; END IF; "
        "RETURN NEW; END $$; "
        f"CREATE TRIGGER fail {timing} INSERT ON webhook_events FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    data = HEADER + b"".join(event(number, status="bad" if number % 9 == 0 else "ok") for number in range(90))
    row = await load(loading, data, segment_bytes=4000)
    code = "invalid_value" if sqlstate == "22012" else "trigger_raised"
    assert (row.rows_inserted, row.rejected) == (80, {code: 10})
    assert {each["reason"] for each in await loading.rejects(row.id)} == {"not today"}


async def test_a_trigger_that_drops_and_fills(loading: Loading) -> None:
    await loading.execute(
        "CREATE FUNCTION edit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.status = 'drop' THEN RETURN NULL; END IF; "
        "IF NEW.status = 'fill' THEN NEW.source := 'filled'; END IF; RETURN NEW; END $$; "
        "CREATE TRIGGER edit BEFORE INSERT ON webhook_events FOR EACH ROW EXECUTE FUNCTION edit()"
    )
    records = [
        event(1),
        event(2, status="drop"),
        event(3, status="fill", source=""),
        event(4, source=""),
        event(1),
        event(2, status="drop"),
    ]
    row = await load(loading, HEADER + b"".join(records))
    assert (row.rows_inserted, row.rows_skipped) == (2, 2)
    assert row.rejected == {"missing_value": 1, "duplicate_key": 1}
    assert [(each["line"], each["column"]) for each in await loading.rejects(row.id)] == [("5", "source"), ("6", "")]


async def test_bad_values_and_refused_rows_come_in_the_order_of_the_file(loading: Loading) -> None:
    await loading.execute("ALTER TABLE webhook_events ADD CHECK (amount < 1000)")
    records: list[bytes] = []
    expected: list[str] = []
    for number in range(0, 600, 6):
        records += [
            event(number),
            event(number + 1, occurred_at="never"),
            event(number),
            event(number + 2, amount="5000"),
            b"too,few\n",
            event(number + 3, status="\xff").replace("\xff".encode(), b"\xff"),
        ]
        expected += ["invalid_date", "duplicate_key", "check_violated", "wrong_field_count", "invalid_utf8"]
    row = await loading.load(await loading.stored(HEADER + b"".join(records), segment_bytes=3000))
    assert (row.state, row.rows_inserted, row.rows_failed) == ("completed", 100, 500)
    rejects = await loading.rejects(row.id)
    assert [each["code"] for each in rejects] == expected
    assert await loading.original(row.id) == HEADER + b"".join(
        record for number, record in enumerate(records) if number % 6
    )


PARTITIONED = """
DROP TABLE webhook_events;
CREATE TABLE webhook_events (
    id bigint GENERATED ALWAYS AS IDENTITY, kind text NOT NULL, day date NOT NULL,
    twice bigint GENERATED ALWAYS AS (id * 2) STORED, UNIQUE (kind, day)
) PARTITION BY RANGE (day);
CREATE TABLE "of 2026" PARTITION OF webhook_events FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE "of 2027" PARTITION OF webhook_events FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
"""


async def test_partitions_identity_and_generated_columns(loading: Loading) -> None:
    await loading.execute(PARTITIONED)
    days = ["2026-01-01", "2027-05-05", "2028-01-01", "2026-01-01", "2025-12-31", "2027-05-06"]
    data = b"kind,day\n" + b"".join(f"a,{day}\n".encode() for day in days)
    row = await load(loading, data)
    assert (row.rows_inserted, row.rejected) == (3, {"check_violated": 2, "duplicate_key": 1})
    assert [each["reason"].split(":")[0] for each in await loading.rejects(row.id)] == [
        'no partition of relation "webhook_events" found for row',
        'duplicate key value violates unique constraint "of 2026_kind_day_key"',
        'no partition of relation "webhook_events" found for row',
    ]
    # A column GENERATED ALWAYS AS IDENTITY takes the file's values, as with COPY.
    row = await load(loading, b"id,kind,day\n700,b,2026-02-02\n701,b,2026-02-02\n702,b,2026-02-03\n")
    assert (row.rows_inserted, row.rejected) == (2, {"duplicate_key": 1})
    assert await loading.fetch("SELECT id, twice FROM webhook_events WHERE kind = 'b' ORDER BY id") == [
        (700, 1400),
        (702, 1404),
    ]


async def test_rows_that_refer_to_others_of_their_segment(loading: Loading) -> None:
    await loading.execute(
        "DROP TABLE webhook_events; "
        "CREATE TABLE webhook_events (id int PRIMARY KEY, parent int REFERENCES webhook_events)"
    )
    pairs = [(number, number + 1) for number in range(1, 200)] + [(200, ""), (300, 999), (200, ""), (301, 300)]
    data = b"id,parent\n" + b"".join(f"{child},{parent}\n".encode() for child, parent in pairs)
    row = await load(loading, data)
    assert (row.rows_inserted, row.rejected) == (200, {"foreign_key_violated": 2, "duplicate_key": 1})
    assert [each["line"] for each in await loading.rejects(row.id)] == ["202", "203", "204"]


async def test_odd_names(loading: Loading) -> None:
    name = '"it\'s {odd} $1 ""x"""'
    await loading.execute(
        "DROP TABLE webhook_events; "
        f"CREATE TABLE webhook_events ({name} text PRIMARY KEY, _row int, n int CHECK (n > 0), r int)"
    )
    row = await load(loading, f"{name},_row,n,r\na,1,1,1\nb,2,0,1\na,3,3,1\n".encode())
    assert (row.rows_inserted, row.rejected) == (1, {"check_violated": 1, "duplicate_key": 1})


@pytest.mark.parametrize("unique", ["", ", UNIQUE (n)"])
async def test_the_reason_is_that_of_postgres_however_it_was_found(loading: Loading, unique: str) -> None:
    await loading.execute(
        "DROP TABLE webhook_events; CREATE TABLE webhook_events "
        f"""("100%" char(3), at timestamptz, n int, v text, CONSTRAINT "my ""key" PRIMARY KEY ("100%", at) {unique})"""
    )
    first = [
        f"a,2026-01-01T00:00:00Z,{number},x\n" if number == 7 else f"{number},now,{number},\n" for number in range(40)
    ]
    data = '"100%",at,n,v\n' + "".join(first) + "a ,2026-01-01 01:00:00+01,100,x\n"
    row = await load(loading, data.encode())
    assert (row.rows_inserted, row.rejected) == (40, {"duplicate_key": 1})
    async with loading.pool.acquire() as connection:
        with pytest.raises(asyncpg.UniqueViolationError) as caught:
            await connection.execute("INSERT INTO webhook_events VALUES ('a', '2026-01-01T00:00:00Z', 200)")
    assert [each["reason"] for each in await loading.rejects(row.id)] == [
        f"{caught.value.message}: {caught.value.detail}"
    ]


async def test_a_role_that_may_not_create_temporary_tables(loading: Loading) -> None:
    database = await loading.value("SELECT current_database()")
    await loading.execute(
        f"DROP ROLE IF EXISTS lacking; CREATE ROLE lacking; REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC; "
        "GRANT INSERT ON webhook_events TO lacking; GRANT USAGE ON SCHEMA stream_api TO lacking; "
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA stream_api TO lacking"
    )
    await load(loading, HEADER + event(1))
    manifest = await loading.stored(HEADER + event(1) + event(2))
    await loading.execute(f"ALTER DATABASE {database} SET role = lacking")
    async with open_loading(loading.settings) as limited:
        row = await limited.load(manifest)
    assert row.error is not None
    assert (row.state, row.error["code"], row.error["line"]) == ("failed", "constraint_violated", 2)
    assert "GRANT TEMPORARY ON DATABASE" in row.error["message"]
    await loading.execute(f"ALTER DATABASE {database} RESET role; DROP OWNED BY lacking; DROP ROLE lacking")


async def test_rules_on_insert(loading: Loading) -> None:
    await load(loading, HEADER + event(1))
    await loading.execute("CREATE RULE twice AS ON INSERT TO webhook_events DO ALSO SELECT 1")
    row = await loading.load(await loading.stored(HEADER + event(1) + event(2)))
    assert row.error is not None
    assert (row.state, row.error["code"], row.error["line"]) == ("failed", "constraint_violated", 2)
    assert "rules on INSERT" in row.error["message"]
    assert await loading.count() == 1


async def test_lanes_that_want_each_others_keys(settings: Settings) -> None:
    # Each segment has the keys of the one before it in the opposite order.
    numbers = list(range(200))
    data = HEADER + b"".join(event(number) for turn in range(6) for number in numbers[:: 1 if turn % 2 else -1])
    segment = len(b"".join(event(number) for number in numbers))
    async with open_loading(change(settings, lanes=4)) as loading:
        row = await load(loading, data, segment_bytes=segment)
        assert (row.rows_inserted, row.rejected) == (200, {"duplicate_key": 1000})


@pytest.mark.parametrize("seed", range(6))
async def test_random_files_against_a_model(settings: Settings, seed: int) -> None:
    choice = random.Random(seed)
    async with open_loading(change(settings, lanes=1, batch_bytes=2000)) as loading:
        await loading.execute(
            "DROP TABLE webhook_events; CREATE TABLE webhook_events "
            "(id int PRIMARY KEY, other int UNIQUE, amount numeric CHECK (amount < 90), note text NOT NULL)"
        )
        taken: list[tuple[int, int | None, int, str]] = []
        for _ in range(2):
            lines, refused = [], []
            for _ in range(choice.randrange(400)):
                key, other = choice.randrange(300), choice.choice([None, choice.randrange(300)])
                amount, note = choice.randrange(100), choice.choice(["x", "two\nlines", "", '"quoted"'])
                quoted = '"' + note.replace('"', '""') + '"' if note else ""
                space = choice.choice(["", "", " "])
                line = f"{key},{'' if other is None else other},{space}{amount},{quoted}\n".encode()
                lines.append(line)
                if (
                    not note
                    or amount >= 90
                    or key in {row[0] for row in taken}
                    or (other is not None and other in {row[1] for row in taken})
                ):
                    refused.append(line)
                else:
                    taken.append((key, other, amount, note))
            data = b"id,other,amount,note\n" + b"".join(lines)
            manifest = await loading.stored(data, segment_bytes=choice.choice([1, 700, 100_000]))
            row = await loading.load(manifest)
            assert (row.state, row.rows_read, row.rows_failed) == ("completed", len(lines), len(refused))
            assert await loading.original(row.id) == b"id,other,amount,note\n" + b"".join(refused)
            found = await loading.fetch("SELECT id, other, amount::int, note FROM webhook_events ORDER BY id")
            assert found == sorted(taken)
