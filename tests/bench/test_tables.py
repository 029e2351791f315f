from __future__ import annotations

import csv
import io

import asyncpg
import pytest

from bench.tables import EVENTS, EVENTS_AS_CSV, SCHEMA, TABLES, WIDE, Table

each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)


def _file(table: Table, rows: int, seed: int = 1) -> bytes:
    return b"".join(table.pieces(rows, seed))


@each_table
def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(table: Table) -> None:
    assert _file(table, 2_500) == _file(table, 2_500)
    assert _file(table, 100) != _file(table, 100, seed=2)


@each_table
def test_a_longer_file_begins_with_the_shorter_one(table: Table) -> None:
    short, long = _file(table, 2_000), _file(table, 2_100)
    # Events are made in larger batches, whose values depend on how many rows there are.
    assert table in (EVENTS, EVENTS_AS_CSV) or long.startswith(short)


@each_table
async def test_postgres_takes_every_row(table: Table, database: str) -> None:
    data = _file(table, 2_100)
    header, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
    assert header == [name for name, _ in table.columns]
    assert len(rows) == 2_100
    assert {len(row) for row in rows} == {len(header)}
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(f"CREATE SCHEMA {SCHEMA}")
        for keyed in {table.key is not None, False}:
            await connection.execute(table.ddl(keyed=keyed))
            source = io.BytesIO(data)
            name = table.target(keyed=keyed).removeprefix(f"{SCHEMA}.")
            await connection.copy_to_table(name, schema_name=SCHEMA, source=source, format="csv", header=True)
            assert await connection.fetchval(f"SELECT count(*) FROM {table.target(keyed=keyed)}") == 2_100
    finally:
        await connection.close()


def test_a_table_and_its_twin_differ_by_the_key_only() -> None:
    assert EVENTS.target(keyed=True) == f"{SCHEMA}.events"
    assert EVENTS.target(keyed=False) == f"{SCHEMA}.events_no_key"
    assert "PRIMARY KEY (id)" in EVENTS.ddl(keyed=True)
    assert "PRIMARY KEY" not in EVENTS.ddl(keyed=False)
    assert len(WIDE.columns) == 40
