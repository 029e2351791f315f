"""The two forms in which rows go to COPY."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import Any

import asyncpg
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.datasets.plan import PlanColumn
from stream_api.load import encoder as encoding
from stream_api.load.encoder import BinaryEncoder, encode_csv
from tests.load.values import COPY_HEADER, COPY_TRAILER, connected, needs_binary

_ODD = [
    "",
    "\\.",
    "\\N",
    "NULL",
    '"',
    '""',
    '\\"',
    "\n",
    "\r",
    "\r\n",
    "a\\.\n\\.\n",
    "\n\\.\n",
    "\ufeff",
    ",",
    "a,b",
    "é🎉",
    " ",
    "\t",
    "'",
    "\\",
    "\x01",
    "\x7f",
    "\u2028",
    "null",
]


@pytest.mark.parametrize("columns", [1, 3])
async def test_every_odd_text_survives_csv(empty_database: str, columns: int) -> None:
    values: list[str | None] = [*_ODD, None]
    names = [f"c{number}" for number in range(columns)]
    # Each value stands once in each column, so first and last on a line as well.
    rows = [[values[(row + shift) % len(values)] for row in range(len(values))] for shift in range(columns)]
    data = encode_csv(pa.RecordBatch.from_arrays([pa.array(row, pa.string()) for row in rows], names=names))
    async with connected(empty_database) as pool:
        await pool.execute(f"CREATE TABLE t (n serial, {', '.join(f'{name} text' for name in names)})")
        async with pool.acquire() as connection:
            await connection.copy_to_table("t", columns=names, source=BytesIO(data), format="csv")
        stored = await pool.fetch(f"SELECT {', '.join(names)} FROM t ORDER BY n")
    assert [tuple(row) for row in stored] == list(zip(*rows, strict=True))


@given(st.lists(st.tuples(*[st.one_of(st.none(), st.text(st.sampled_from('a"\\.,\r\n é')))] * 2), max_size=20))
def test_no_line_of_csv_begins_with_a_bare_backslash(rows: list[tuple[str | None, str | None]]) -> None:
    # Postgres 17 and older take a line of `\.` for the end of the data, but not where a quote opened it.
    batch = pa.RecordBatch.from_arrays(
        [pa.array([row[number] for row in rows], pa.string()) for number in range(2)], names=["a", "b"]
    )
    outside = True
    before = "\n"
    for character in encode_csv(batch).decode():
        if outside:
            assert character in '",\n' or before not in "\n,"
        if character == '"':
            outside = not outside
        before = character


def _columns(*kinds: str) -> list[PlanColumn]:
    return [PlanColumn(name=kind, source=kind, kind=kind, type=kind) for kind in kinds]  # type: ignore[arg-type]


@needs_binary
def test_pieces_are_the_rows_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = BinaryEncoder(_columns("int4", "text"))
    arrays: list[pa.Array[Any]] = [pa.array(range(1000), pa.int32()), pa.array([f"text {n}" * 40 for n in range(1000)])]
    whole = b"".join(encoder.encode(arrays))
    assert whole[:2] == b"\x00\x02"  # two fields in the first row: no header
    assert not whole.endswith(COPY_TRAILER)
    monkeypatch.setattr(encoding, "_SLICE_FIELDS", 14)
    pieces = encoder.encode(arrays)
    assert b"".join(pieces) == whole
    keep = pa.array([n % 2 == 0 for n in range(1000)])
    assert b"".join(encoder.encode(arrays, keep)) == b"".join(encoder.encode([a.filter(keep) for a in arrays]))
    assert encoder.encode(arrays, pa.array([False] * 1000)) == ()
    assert encoder.encode([a.slice(0, 0) for a in arrays]) == ()


@needs_binary
async def test_encoders_work_in_several_threads_at_once() -> None:
    encoder = BinaryEncoder(_columns("int4", "jsonb", "text"))
    batches: list[list[pa.Array[Any]]] = [
        [pa.array([k] * 500, pa.int32()), pa.array([f'{{"k": {k}}}'] * 500), pa.array([str(k)] * 500)]
        for k in range(40)
    ]
    expected = [encoder.encode(arrays) for arrays in batches]
    assert await asyncio.gather(*(asyncio.to_thread(encoder.encode, arrays) for arrays in batches)) == expected


@needs_binary
async def test_columns_of_odd_names(empty_database: str) -> None:
    names = ['a"b', "", "Ä", "select", "0"]
    columns = [PlanColumn(name=name, source=name, kind="text", type="text") for name in names]
    pieces = BinaryEncoder(columns).encode([pa.array([name]) for name in names])
    connection = await asyncpg.connect(empty_database)
    try:
        await connection.execute("CREATE TABLE t (a text, b text, c text, d text, e text)")
        source = BytesIO(b"".join([COPY_HEADER, *pieces, COPY_TRAILER]))
        await connection.copy_to_table("t", source=source, format="binary")
        assert [tuple(row) for row in await connection.fetch("SELECT * FROM t")] == [tuple(names)]
    finally:
        await connection.close()
