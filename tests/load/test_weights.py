"""What rows weigh is bounded, however short they are: the terms of the memory formula."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stream_api.config import Settings
from stream_api.datasets.plan import Plan, PlanColumn
from stream_api.dialects.dialect import Dialect
from stream_api.load.header import Limits
from stream_api.load.judge import Question, Refusal
from stream_api.load.model import Batch
from stream_api.load.parser import Parser
from stream_api.load.pipeline import ENCODED_EXPANSION, FIELD_BYTES, RECORD_BYTES, ROWS_EXPANSION, Sizes
from stream_api.load.validator import Validator

SETTINGS = Settings()
SIZES = Sizes.of(SETTINGS, SETTINGS.segment_bytes)


class NobodyAsks:
    async def ask(self, _: Sequence[Question]) -> dict[Question, Refusal]:
        raise AssertionError


async def in_thread(function: Callable[..., Any], /, *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


def plan_of(columns: int) -> Plan:
    names = [f"d{number}" for number in range(columns)]
    return Plan(
        dataset="digits",
        table_schema="public",
        table_name="digits",
        fields=tuple(names),
        columns=tuple(
            PlanColumn(
                name=name, source=name, kind="numeric", type="numeric(9,0)", position=number, precision=9, scale=0
            )
            for number, name in enumerate(names)
        ),
        copy_format="binary",
        header=False,
    )


def batches_of(plan: Plan, data: bytes) -> list[Batch]:
    cutter = SIZES.cutter(plan, Limits.of(SETTINGS), 0, 1)
    cutter.add(data)
    return [batch for batch in cutter.cut(final=True) if batch.ends.size]


@pytest.mark.parametrize("columns", [1, 2, 4, 5, 6, 7, 10, 40, 1600])
async def test_columns_of_one_digit_weigh_no_more_than_the_formula_says(columns: int) -> None:
    plan = plan_of(columns)
    record = b",".join([b"7"] * columns) + b"\n"
    batch = batches_of(plan, record * (SIZES.segment // len(record)))[0]
    rows = Parser(Dialect(), plan.fields).parse(batch)
    assert rows.table.num_rows == batch.ends.size
    assert rows.size_bytes <= ROWS_EXPANSION * SIZES.batch
    encoded = await Validator(plan, NobodyAsks(), in_thread).validate(rows)  # type: ignore[arg-type]
    assert encoded.read == encoded.binary_lines.size + encoded.csv_lines.size == batch.ends.size
    assert encoded.size_bytes <= ENCODED_EXPANSION * SIZES.batch


def test_line_ends_within_a_value_weigh_nothing_of_their_own() -> None:
    record = b'"' + b"\n" * 1000 + b'"\n'
    batch = batches_of(plan_of(1), record * (SIZES.segment // len(record)))[0]
    assert batch.lines == 1001 * batch.ends.size
    assert batch.size_bytes <= 1.1 * SIZES.batch
    assert Parser(Dialect(), ["d0"]).parse(batch).size_bytes <= ROWS_EXPANSION * SIZES.batch


def test_short_records_make_smaller_batches_and_others_whole_ones() -> None:
    short = batches_of(plan_of(1), b"7\n" * SIZES.segment)
    assert max(batch.ends.size for batch in short) == SIZES.batch // RECORD_BYTES
    ordinary = batches_of(plan_of(1), (b"7" * 31 + b"\n") * (SIZES.segment // 32))
    assert [len(batch.data) for batch in ordinary] == [SIZES.batch] * (SIZES.segment // SIZES.batch)


def test_short_fields_make_smaller_batches_too() -> None:
    record = b",".join([b"7"] * 40) + b"\n"
    batch = batches_of(plan_of(40), record * (SIZES.segment // len(record)))[0]
    assert batch.ends.size == SIZES.batch // (40 * FIELD_BYTES)
