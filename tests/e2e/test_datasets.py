"""A file of datasets, from the start of the service to the rows in the table and the rejects."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from stream_api.config import Settings
from tests.load.conftest import open_loading
from tests.support.service import Service, client_of, running, until

pytestmark = pytest.mark.timeout(120)

_DATASETS = """
[datasets.orders]
table = "orders"
unknown_columns = "ignore"
max_rejects = "50%"
null = "N/A"
trim = true

[datasets.orders.columns]
order_id = { source = "Order ID", pattern = "[A-Z]{2}-[0-9]+" }
paid_at = { formats = ["%d.%m.%Y", "epoch_s"], min = 2020-01-01 }
amount = { source = "Betrag", decimal = ",", thousands = ".", min = 0 }
state = { case = "lower", values = ["new", "paid"], default = "new" }
upload_id.constant = "$uploadId"
line.constant = "$line"
"""
_FILE = """Order ID;Betrag;paid_at;state;colour
AB-1; 1.234,50 ;3.2.2026;Paid;red
AB-2;N/A;1769904000;;blue
AB-3;1.5;3.2.2026;new;
ab-4;1;3.2.2026;new;
AB-5;1;31.2.2026;new;
AB-6;1;3.2.2019;new;
AB-7;-1;;sold;
AB-8;1;;sold;
AB-9;0;N/A;"N/A";
AB-10;0;;new;
AB-11;0;;new;
AB-12;0;;new;
"""


async def test_a_file_goes_by_the_rules_of_its_dataset(settings: Settings, tmp_path: Path) -> None:
    datasets = tmp_path / "datasets.toml"
    datasets.write_text(_DATASETS)
    async with open_loading(settings) as database:
        await database.execute(
            "CREATE TABLE orders (order_id text PRIMARY KEY, state text NOT NULL, amount numeric(12,2), paid_at date,"
            " upload_id uuid, line int)"
        )
        async with running("serve", settings, tmp_path, datasets=datasets) as service, client_of(service) as client:
            upload_id = (await client.upload(_FILE.encode(), dataset="orders"))["uploadId"]
            status = await client.end(upload_id)
            assert (status["status"], status["rowsProcessed"], status["rowsFailed"]) == ("completed", 6, 6), status
            assert status["rejected"] == {
                "invalid_number": 1,
                "pattern_mismatch": 1,
                "invalid_date": 1,
                "out_of_range": 2,
                "not_allowed": 1,
            }
            async with client.http.get(f"{service.url}/upload/{upload_id}/rejects") as answer:
                rejects = list(csv.DictReader(io.StringIO(await answer.text(), newline="")))
        assert [(each["line"], each["column"], each["reason"]) for each in rejects] == [
            ("4", "Betrag", "The value is no number with decimal = ',' and thousands = '.'"),
            ("5", "Order ID", "The value does not match the pattern [A-Z]{2}-[0-9]+"),
            ("6", "paid_at", "The value fits none of the formats %d.%m.%Y, epoch_s"),
            ("7", "paid_at", "The value is out of range: min = 2020-01-01"),
            ("8", "Betrag", "The value is out of range: min = 0"),
            ("9", "state", "The value is none of those allowed: new, paid"),
        ]
        rows = await database.fetch(
            "SELECT order_id, state, amount::text, paid_at::text, upload_id::text, line"
            " FROM orders ORDER BY line LIMIT 3"
        )
        assert rows == [
            ("AB-1", "paid", "1234.50", "2026-02-03", upload_id, 2),
            ("AB-2", "new", None, "2026-02-01", upload_id, 3),
            ("AB-9", "new", "0.00", None, upload_id, 10),
        ]


async def test_datasets_that_do_not_go_with_their_tables_are_said_at_the_start(
    settings: Settings, tmp_path: Path
) -> None:
    datasets = tmp_path / "datasets.toml"
    datasets.write_text(
        '[datasets.a]\ntable = "webhook_events"\ncolumns.source.min = 1\n[datasets.b]\ntable = "none"\n'
    )
    async with running("worker", settings, tmp_path, datasets=datasets) as worker:
        await until(lambda: len([each for each in worker.events() if each["event"] == "start.dataset_misfit"]) == 2)
        said = [each for each in worker.events() if each["event"] == "start.dataset_misfit"]
    assert [(each["dataset"], each["code"]) for each in said] == [("a", "dataset_invalid"), ("b", "table_missing")]
    assert "columns.source.min" in said[0]["detail"]


async def test_the_service_does_not_start_with_a_wrong_file(settings: Settings, tmp_path: Path) -> None:
    datasets = tmp_path / "datasets.toml"
    datasets.write_text(_DATASETS.replace("decimal", "decimals").replace("1-01\n", "1-01}"))
    for role in ("serve", "worker"):
        service = Service(role, settings, tmp_path, datasets=datasets)
        assert await service.ended() == 2
        assert "datasets.toml:12:" in service.log.read_text()
