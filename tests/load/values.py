"""Helpers of the validator's tests: batches made by hand, and the loading of what the validator made of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any

import asyncpg
import numpy as np
import pyarrow as pa
import pytest

from stream_api.datasets.catalogue import read_table
from stream_api.datasets.dataset import Dataset
from stream_api.datasets.plan import Plan, make_plan
from stream_api.ledger.pool import SESSION_SETTINGS, Connection, Pool
from stream_api.load.encoder import BINARY
from stream_api.load.flaws import Flaw, Flaws
from stream_api.load.judge import Judge
from stream_api.load.model import Batch, Encoded, Rows
from stream_api.load.validator import Validator

Record = Sequence[str | None]

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"

#: For tests that look at the binary form itself.
needs_binary = pytest.mark.skipif(not BINARY, reason="there is no pgpq for this machine")


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Pool]:
    """A pool with the session settings of the service."""
    async with asyncpg.create_pool(dsn, min_size=0, max_size=3, server_settings=SESSION_SETTINGS) as pool:
        yield pool


async def plan_for(connection: Connection, table: str, header: Sequence[str] | None = None) -> Plan:
    """The plan of a file that has these columns, or all."""
    found = await read_table(connection, table)
    return make_plan(found, Dataset(name=table, table=table), header or [column.name for column in found.columns])


def make_rows(plan: Plan, records: Iterable[Record], flaws: Mapping[int, Flaw] | None = None) -> Rows:
    """A batch. Record k stands on line k + 2 and at byte 100 * (k + 1), after a header on line 1.

    :param flaws: of records that the parser has refused; the rows are the others, in their order.
    """
    rows = list(records)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(plan.columns)
    table = pa.RecordBatch.from_arrays(
        [pa.array(column, pa.string()) for column in columns], names=list(plan.column_names)
    )
    found = Flaws(len(rows) + len(flaws or {}))
    for record, flaw in (flaws or {}).items():
        found.add(np.array([record]), flaw)
    read = len(found.flawless)
    ends = (np.arange(read) + 1) * 100
    batch = Batch(0, 100, 2, (b"r" * 99 + b"\n") * read, ends, read, ends_segment=True)
    return Rows(batch, read, table, np.flatnonzero(found.flawless), np.arange(read) + 2, found)


def make_validator(plan: Plan, pool: Pool) -> Validator:
    """A validator whose work runs in real threads."""
    return Validator(plan, Judge(pool), asyncio.to_thread)


async def validate(pool: Pool, table: str, records: Iterable[Record]) -> Encoded:
    """What the validator makes of records that have all columns of a table."""
    async with pool.acquire() as connection:
        plan = await plan_for(connection, table)
    encoded = await make_validator(plan, pool).validate(make_rows(plan, records))
    assert len(encoded.binary_lines) + len(encoded.csv_lines) + len(encoded.rejections) == encoded.read
    return encoded


async def load(connection: Connection, plan: Plan, encoded: Encoded) -> int:
    """COPY what was encoded into the plan's table; how many rows that were."""
    tags = []
    if encoded.binary:
        source = BytesIO(b"".join([COPY_HEADER, *encoded.binary, COPY_TRAILER]))
        tags.append(await copy(connection, plan, source, "binary"))
    if encoded.csv:
        tags.append(await copy(connection, plan, BytesIO(encoded.csv), "csv"))
    return sum(int(tag.split()[-1]) for tag in tags)


async def copy(connection: Connection, plan: Plan, source: BytesIO, copy_format: Any) -> str:
    """One COPY; its tag."""
    return await connection.copy_to_table(
        plan.table_name,
        schema_name=plan.table_schema,
        columns=list(plan.column_names),
        source=source,
        format=copy_format,
    )


async def validate_and_load(pool: Pool, table: str, records: Iterable[Record]) -> Encoded:
    """Validate, load what was accepted, and check that as many rows arrived as were sent."""
    encoded = await validate(pool, table, records)
    async with pool.acquire() as connection:
        plan = await plan_for(connection, table)
        async with connection.transaction():
            loaded = await load(connection, plan, encoded)
    assert loaded == len(encoded.binary_lines) + len(encoded.csv_lines)
    return encoded


def quoted_csv(records: Iterable[Record]) -> bytes:
    """CSV with everything quoted but the nulls: what the validator's own is compared with."""
    lines = (",".join("" if v is None else '"' + v.replace('"', '""') + '"' for v in record) for record in records)
    return "".join(f"{line}\n" for line in lines).encode()


async def stored(connection: Connection, table: str) -> bytes:
    """All that a table holds, in the form that shows every bit."""
    data = BytesIO()
    await connection.copy_from_query(f"SELECT * FROM {table} ORDER BY 1", output=data, format="binary")
    return data.getvalue()
