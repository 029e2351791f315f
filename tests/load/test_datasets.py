"""Loads into named datasets: what their files say about columns, and what an upload asks beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from stream_api.datasets.dataset import Dataset
from stream_api.datasets.rules import ColumnRules
from stream_api.dialects.dialect import Dialect
from stream_api.load.model import Encoded, Rows
from stream_api.load.pipeline import Sizes
from stream_api.load.validator import Validator
from stream_api.options import Mode, Options
from tests.load.conftest import Loading, open_loading
from tests.support.settings import change

ORDERS = """
CREATE TABLE orders (
    order_id int PRIMARY KEY, state text, amount numeric(12,2), paid_at timestamptz,
    loaded_by uuid, line bigint, segment int, doubled int GENERATED ALWAYS AS (order_id * 2) STORED)
"""
DATASETS = {
    "orders": Dataset(
        name="orders",
        table="orders",
        columns={
            "order_id": ColumnRules(source=("Order ID",)),
            "loaded_by": ColumnRules(constant="$uploadId"),
            "line": ColumnRules(constant="$line"),
            "segment": ColumnRules(constant="$segment"),
        },
        ignore="note",
    ),
    "plain": Dataset(name="plain", table="orders", header=False),
}


@pytest.fixture
async def orders(loading: Loading) -> AsyncIterator[Loading]:
    """The datasets, over a table `orders`."""
    await loading.execute(ORDERS)
    async with open_loading(loading.settings, datasets=DATASETS) as named:
        yield named


async def test_rows_know_where_they_come_from(orders: Loading) -> None:
    data = b'note,Order ID,state\nx,1,new\n\n"two\nlines",2,paid\nx,3,\n'
    manifest = await orders.stored(data, dataset="orders", segment_bytes=20)
    row = await orders.load(manifest)
    assert (row.state, row.rows_inserted) == ("completed", 3), row.error
    assert await orders.fetch("SELECT order_id, state, loaded_by, line, segment FROM orders ORDER BY 1") == [
        (1, "new", manifest.upload_id, 2, 1),
        (2, "paid", manifest.upload_id, 4, 1),
        (3, None, manifest.upload_id, 6, 2),
    ]


async def test_a_file_without_a_header_has_the_tables_columns(orders: Loading) -> None:
    data = b"1,new,1.50,2026-11-23,,7,8\nx,,,,,,\n2,,,,,,\nonly one\n"
    manifest = await orders.stored(data, dataset="plain", segment_bytes=30)
    row = await orders.load(manifest)
    assert row.state == "completed", row.error
    assert (row.rows_read, row.rows_inserted) == (4, 2)
    assert row.rejected == {"invalid_number": 1, "wrong_field_count": 1}
    assert await orders.original(row.id) == b"x,,,,,,\nonly one\n"
    assert await orders.fetch("SELECT order_id, state, amount::text, line, segment FROM orders ORDER BY 1") == [
        (1, "new", "1.50", 7, 8),
        (2, None, None, None, None),
    ]


async def test_what_stands_before_the_first_record_is_given_back_as_well(orders: Loading) -> None:
    options = Options(header=False, columns=("state", "order_id"))
    data = "\ufeffsep=;\r\nä;1\r\nö;x\r\n".encode("utf-16-le")
    dialect = Dialect(delimiter=";", sep_line=True, encoding="utf-16-le")
    row = await orders.load(await orders.stored(data, dataset="orders", options=options, dialect=dialect))
    assert (row.state, row.rows_inserted, row.rows_failed) == ("completed", 1, 1), row.error
    assert await orders.original(row.id) == "\ufeffsep=;\r\nö;x\r\n".encode("utf-16-le")
    assert await orders.fetch("SELECT order_id, state, line FROM orders") == [(1, "ä", 2)]


async def test_the_uploads_mapping(orders: Loading) -> None:
    options = Options(mapping={"nr": "order_id", "Note": "state"})
    row = await orders.load(await orders.stored(b"note,nr\nhello,1\n", dataset="orders", options=options))
    assert (row.state, row.rows_inserted) == ("completed", 1), row.error
    assert await orders.value("SELECT state FROM orders WHERE order_id = 1") == "hello"


async def test_rules_for_another_table_fail_the_load(orders: Loading) -> None:
    datasets = {"orders": Dataset(name="orders", table="orders", columns={"colour": ColumnRules(trim=True)})}
    async with open_loading(orders.settings, datasets=datasets) as other:
        row = await other.load(await other.stored(b"order_id\n1\n", dataset="orders"))
        assert row.state == "failed"
        assert row.error is not None
        assert row.error["code"] == "dataset_invalid"


async def test_the_datasets_limit_of_rejects_stands_between_the_uploads_and_the_setting(orders: Loading) -> None:
    named = DATASETS["orders"]
    datasets = {"orders": msgspec.structs.replace(named, max_rejects="1")}
    data = b"order_id\n1\nx\nx\n"
    async with open_loading(orders.settings, datasets=datasets) as other:
        row = await other.load(await other.stored(data, dataset="orders"))
        assert row.error is not None
        assert row.error["code"] == "too_many_rejects"
        row = await other.load(await other.stored(data, dataset="orders", max_rejects="2"))
        assert (row.state, row.rows_inserted) == ("completed", 1)


async def test_batches_of_short_records_stay_small_where_much_is_added_to_them(orders: Loading) -> None:
    datasets = {
        "orders": Dataset(
            name="orders",
            table="orders",
            columns={"state": ColumnRules(default="x" * 1000), "loaded_by": ColumnRules(constant="$uploadId")},
        )
    }
    sizes: list[int] = []

    class Watching(Validator):
        async def validate(self, rows: Rows) -> Encoded:
            encoded = await super().validate(rows)
            sizes.append(encoded.size_bytes)
            return encoded

    async with open_loading(orders.settings, datasets=datasets) as other:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("stream_api.load.assembly.Validator", Watching)
            data = b"order_id,state\n" + b"".join(b"%d,\n" % number for number in range(10_000))
            row = await other.load(await other.stored(data, dataset="orders"))
        assert (row.state, row.rows_inserted) == ("completed", 10_000), row.error
        batch_bytes = Sizes.of(other.settings, other.settings.segment_bytes).batch
        assert sum(sizes) > 10_000_000
        assert max(sizes) < 2 * batch_bytes


async def test_a_retry_goes_by_the_rules_that_committed_segments_went_by(orders: Loading) -> None:
    lower = {"orders": Dataset(name="orders", table="orders", columns={"state": ColumnRules(case="lower")})}
    upper = {"orders": Dataset(name="orders", table="orders", columns={"state": ColumnRules(case="upper")})}
    data = b"order_id,state\n" + b"".join(b"%d,New\n" % number for number in range(100))
    await orders.execute("ALTER TABLE orders ADD CONSTRAINT few CHECK (order_id < 50) NOT VALID")
    # Several lanes may commit more rejects between them than the limit, each of them before it hears of the others.
    one_lane = change(orders.settings, lanes=1)
    async with open_loading(one_lane, datasets=lower) as first:
        manifest = await first.stored(data, dataset="orders", segment_bytes=100, max_rejects="20")
        row = await first.load(manifest)
        assert (row.state, row.error and row.error["code"]) == ("failed", "too_many_rejects")
        committed = row.rows_processed
        assert 0 < committed < 100
    async with open_loading(one_lane, datasets=upper) as second:
        await second.execute("ALTER TABLE orders DROP CONSTRAINT few")
        await second.ledger.reopen(manifest.upload_id)
        row = await second.load(manifest)
        assert row.state == "completed", row.error
        assert row.rows_processed > committed
        assert await second.value("SELECT string_agg(DISTINCT state, ',') FROM orders") == "new"
        # Nothing is committed of this one.
        row = await second.load(await second.stored(b"order_id,state\n1000,New\n", dataset="orders"))
        assert await second.value("SELECT state FROM orders WHERE order_id = 1000") == "NEW"


@pytest.mark.parametrize("mode", ["append", "atomic", "replace"])
async def test_rules_hold_in_every_mode_and_with_conflicts(orders: Loading, mode: Mode) -> None:
    columns = {
        "state": ColumnRules(case="lower", values=("new", "paid")),
        "amount": ColumnRules(decimal=",", min=0),
        "line": ColumnRules(constant="$line"),
    }
    datasets = {"orders": Dataset(name="orders", table="orders", mode=mode, conflict="update", columns=columns)}
    first = b"order_id,state,amount\n1,NEW,1\n"
    second = b'order_id,state,amount\n1,PAID,2\n2,x,3\n3,New,-1\n1,Paid,"3,5"\n'
    async with open_loading(orders.settings, datasets=datasets) as other:
        row = await other.load(await other.stored(first, dataset="orders"))
        assert row.state == "completed", row.error
        row = await other.load(await other.stored(second, dataset="orders", segment_bytes=30))
        assert row.state == "completed", row.error
        assert row.rejected == {"not_allowed": 1, "out_of_range": 1}
        assert await other.fetch("SELECT order_id, state, amount::text, line FROM orders") == [(1, "paid", "3.50", 5)]
