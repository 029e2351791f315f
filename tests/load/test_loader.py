"""Whole loads, from a stored file to the table, against real servers."""

from __future__ import annotations

import pytest

from stream_api.errors import Failure
from tests.load.conftest import HEADER, Loading, event, events, open_loading
from tests.support.settings import change


async def test_every_row_arrives(loading: Loading) -> None:
    manifest = await loading.stored(events(range(5000)), segment_bytes=64 * 1024)
    row = await loading.load(manifest)
    assert (row.state, row.rows_read, row.rows_processed, row.rows_inserted, row.rows_failed) == (
        "completed", 5000, 5000, 5000, 0,
    )  # fmt: skip
    assert row.segments > 5
    assert row.progress == 1
    assert await loading.count() == 5000
    assert await loading.fetch("SELECT * FROM webhook_events ORDER BY id LIMIT 1 OFFSET 7") == await loading.fetch(
        "SELECT '00000000-0000-4000-8000-000000000007'::uuid, 'order.created', 'shop', '{\"n\": 7}'::jsonb, "
        "'2026-11-23T10:00:00Z'::timestamptz, 7.50, 'ok'"
    )
    assert await loading.keys() == []
    assert await loading.lanes() == []
    assert [record.status for record in loading.statuses.records][-1] == "completed"
    assert loading.statuses.records[-1].progress == 1


async def test_a_second_load_of_an_ended_upload_only_cleans_up(loading: Loading) -> None:
    data = events(range(10))
    manifest = await loading.stored(data)
    await loading.load(manifest)
    # As if the worker had died between the completing commit and the clean-up.
    await loading.store.put(manifest.key, data)
    await loading.store.put(f"pending/{manifest.upload_id}", b"")
    row = await loading.load(manifest)
    assert (row.state, row.run, await loading.count(), await loading.keys()) == ("completed", 1, 10, [])


@pytest.mark.parametrize("segment_bytes", [1, 40, 1000])
async def test_any_size_of_segment(loading: Loading, segment_bytes: int) -> None:
    row = await loading.load(await loading.stored(events(range(50)), segment_bytes=segment_bytes))
    assert (row.state, row.rows_inserted, await loading.count()) == ("completed", 50, 50)
    assert row.segments == (51 if segment_bytes <= 40 else row.segments)


async def test_bad_rows_are_counted_by_code_and_the_rest_loads(loading: Loading) -> None:
    bad = [
        (b"only,three,fields\n", "wrong_field_count"),
        (event(1, id="not-a-uuid"), "invalid_uuid"),
        (event(2, source=""), "missing_value"),
        (event(3, payload="{"), "invalid_json"),
        (event(4, occurred_at="yesterday-ish"), "invalid_date"),
        (event(5, amount="12,5x".replace(",", ".")), "invalid_number"),
        (event(6, amount="99999999999.00"), "number_out_of_range"),
        (event(7, status="a\0b"), "nul_byte"),
        (event(8).replace(b"shop", b"sh\xff"), "invalid_utf8"),
    ]
    data = HEADER + b"".join(event(100 + number) + record for number, (record, _) in enumerate(bad)) + event(200)
    row = await loading.load(await loading.stored(data))
    assert row.state == "completed"
    assert row.rejected == {code: 1 for _, code in bad}
    assert (row.rows_read, row.rows_inserted, row.rows_failed) == (19, 10, 9)
    assert await loading.count() == 10


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[("amount", text) for text in ("1.234", "1.235", " 5", "NaN", "0x10", "1_000", "+1.5", "1e3")],
        *[
            ("occurred_at", text)
            for text in ("2026-11-23T10:00:00", "2026-11-23", "2026-11-23t10:00:00z", "2026-11-23T10:00:00.1234567Z",
                         "2026-11-23T24:00:00Z", "2026-11-23T23:59:60Z", "infinity", "20261123")
        ],
        *[
            ("id", text)
            for text in ("{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}", "a0eebc999c0b4ef8bb6d6bb9bd380a11",
                         "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11")
        ],
    ],
)  # fmt: skip
async def test_what_psql_copy_takes_is_stored_as_psql_copy_stores_it(loading: Loading, column: str, value: str) -> None:
    data = HEADER + event(1, **{column: value}) + event(2)
    row = await loading.load(await loading.stored(data))
    assert (row.rows_inserted, row.rejected) == (2, {})
    ours = await loading.fetch("SELECT webhook_events::text FROM webhook_events ORDER BY id")
    await loading.execute("TRUNCATE webhook_events")
    async with loading.pool.acquire() as connection:
        await connection.copy_to_table("webhook_events", source=_source(data), format="csv", header=True)
    assert await loading.fetch("SELECT webhook_events::text FROM webhook_events ORDER BY id") == ours


async def _source(data: bytes):  # type: ignore[no-untyped-def]  # noqa: ANN202
    yield data


async def test_columns_in_any_order_and_missing_ones(loading: Loading) -> None:
    header = b"payload,ID,occurred_at,source,event_type\n"
    data = header + b'"{}",00000000-0000-4000-8000-000000000001,2026-01-01T00:00:00Z,s,e\n'
    row = await loading.load(await loading.stored(data))
    assert row.state == "completed"
    assert await loading.fetch("SELECT source, event_type, amount, status FROM webhook_events") == [
        ("s", "e", None, None)
    ]


async def test_a_header_that_does_not_fit(loading: Loading) -> None:
    manifest = await loading.stored(b"id,event_typ,source,payload,occurred_at,source,x\n")
    row = await loading.load(manifest)
    assert row.state == "failed"
    assert row.error is not None
    assert row.error["code"] == "header_mismatch"
    assert row.error["missing"] == ["event_type"]
    assert row.error["unknown"] == ["event_typ", "x"]
    assert row.error["repeated"] == ["source"]
    assert await loading.keys() == [manifest.key]


async def test_a_row_too_many_fails_the_load_and_a_retry_goes_on(loading: Loading) -> None:
    first = await loading.load(await loading.stored(HEADER + event(70)))
    assert first.state == "completed"
    manifest = await loading.stored(events(range(100)), segment_bytes=2000, max_rejects="0")
    row = await loading.load(manifest)
    assert row.state == "failed"
    assert row.error is not None
    assert (row.error["code"], row.error["rowsFailed"], row.error["limit"]) == ("too_many_rejects", 1, "0")
    # It is in no ledger row, for its segment was rolled back.
    assert [each["code"] for each in row.error["rejects"]] == ["duplicate_key"]
    assert row.rejected == {}
    assert await loading.count() == row.rows_inserted + 1 < 100
    assert loading.statuses.records[-1].status == "failed"
    assert manifest.key in await loading.keys()
    await loading.execute("DELETE FROM webhook_events WHERE id = '00000000-0000-4000-8000-000000000046'")
    await loading.ledger.reopen(manifest.upload_id)
    row = await loading.load(manifest)
    assert (row.state, row.run, row.rows_inserted, await loading.count()) == ("completed", 2, 100, 100)
    assert await loading.keys() == []


async def test_a_table_that_is_changed_before_anything_is_loaded(loading: Loading) -> None:
    await loading.load(await loading.stored(HEADER + event(1)))
    manifest = await loading.stored(HEADER + event(1) + event(2, source=""), max_rejects="0")
    assert (await loading.load(manifest)).state == "failed"
    await loading.execute(
        "ALTER TABLE webhook_events DROP CONSTRAINT webhook_events_pkey, ALTER source DROP NOT NULL, "
        "ALTER amount TYPE numeric(14,4)"
    )
    await loading.ledger.reopen(manifest.upload_id)
    row = await loading.load(manifest)
    assert (row.state, row.rows_inserted, row.error) == ("completed", 2, None)


async def test_a_table_that_is_changed_in_the_middle_of_a_load(loading: Loading) -> None:
    await loading.load(await loading.stored(HEADER + event(70)))
    manifest = await loading.stored(events(range(100)), segment_bytes=2000, max_rejects="0")
    assert 0 < (await loading.load(manifest)).rows_inserted < 100
    await loading.execute("ALTER TABLE webhook_events ALTER amount TYPE numeric(14,4)")
    await loading.ledger.reopen(manifest.upload_id)
    row = await loading.load(manifest)
    assert row.error is not None
    assert (row.state, row.error["code"], row.error["changed"]) == (
        "failed",
        "plan_changed",
        ["amount (numeric(12,2) before, numeric(14,4) now)"],
    )
    assert "upload the file again" in row.error["message"]


async def test_a_duplicate_among_rows_that_only_postgres_reads(loading: Loading) -> None:
    data = HEADER + event(1) + event(2, amount=" 5") + event(3) + event(2, amount=" 6")
    row = await loading.load(await loading.stored(data))
    assert (row.rejected, await loading.count()) == ({"duplicate_key": 1}, 3)
    assert [(each["line"], each["code"]) for each in row.first_rejects] == [(5, "duplicate_key")]


async def test_a_record_that_is_too_long(loading: Loading) -> None:
    loader = change(loading.settings, max_record_bytes=1000)
    async with open_loading(loader) as short:
        row = await short.load(await short.stored(HEADER + event(1) + b'"' + b"x" * 2000 + b"\n" + event(2)))
    assert (row.state, row.rows_inserted, row.rejected) == ("completed", 2, {"record_too_long": 1})


async def test_a_table_that_is_missing_then_made(loading: Loading) -> None:
    await loading.execute("ALTER TABLE webhook_events RENAME TO elsewhere")
    manifest = await loading.stored(events(range(3)))
    row = await loading.load(manifest)
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", "table_missing")
    await loading.execute("ALTER TABLE elsewhere RENAME TO webhook_events")
    await loading.ledger.reopen(manifest.upload_id)
    assert (await loading.load(manifest)).state == "completed"
    assert await loading.count() == 3


async def test_a_trigger_that_drops_rows_counts_them_as_skipped(loading: Loading) -> None:
    await loading.execute(
        "CREATE FUNCTION drop_odd() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF (NEW.payload->>'n')::int % 2 = 1 THEN RETURN NULL; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER t BEFORE INSERT ON webhook_events FOR EACH ROW EXECUTE FUNCTION drop_odd()"
    )
    row = await loading.load(await loading.stored(events(range(10))))
    assert (row.state, row.rows_read, row.rows_processed, row.rows_inserted, row.rows_skipped) == (
        "completed", 10, 10, 5, 5,
    )  # fmt: skip


async def test_data_that_is_gone(loading: Loading) -> None:
    manifest = await loading.stored(events(range(3)))
    await loading.store.delete(manifest.key)
    row = await loading.load(manifest)
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", "data_gone")


async def test_an_upload_without_a_manifest_is_forgotten(loading: Loading) -> None:
    manifest = await loading.stored(events(range(3)))
    await loading.store.delete(f"uploads/{manifest.upload_id}/manifest.json")
    await loading.loader.load(manifest.upload_id)
    assert await loading.ledger.get(manifest.upload_id) is None
    assert await loading.keys() == [manifest.key]


async def test_other_tables(loading: Loading) -> None:
    await loading.execute(
        'CREATE TABLE "Odd ""table""" ("a b" int, c text[], d varchar(3) DEFAULT \'x\', e boolean, '
        "f int GENERATED ALWAYS AS (1) STORED)"
    )
    async with open_loading(change(loading.settings, target_table='"Odd ""table"""')) as other:
        data = b'a b,c,e\n1,"{x,y}",yes\n,,\n2,{,t\n3,{},maybe\n'
        row = await other.load(await other.stored(data))
        assert row.state == "completed", row.error
        assert row.rejected == {"invalid_value": 1, "invalid_boolean": 1}
        assert await other.fetch('SELECT * FROM "Odd ""table""" ORDER BY 1') == [
            (1, ["x", "y"], "x", True, 1),
            (None, None, "x", None, 1),
        ]


async def test_an_unreachable_database_is_a_transient_failure(loading: Loading) -> None:
    manifest = await loading.stored(events(range(3)))
    url = "postgresql://nobody:nothing@127.0.0.1:1/nothing"
    async with open_loading(change(loading.settings, database_url=url)) as away:
        with pytest.raises(Failure) as caught:
            await away.loader.load(manifest.upload_id)
    assert (caught.value.code, caught.value.transient) == ("database_unavailable", True)
    assert (await loading.load(manifest)).rows_inserted == 3
