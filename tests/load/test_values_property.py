"""The validator against Postgres' own COPY, in both directions: the same values are taken, and the same is stored."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from io import BytesIO
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stream_api.datasets.plan import Plan
from stream_api.ledger.pool import Connection, Pool
from tests.load.value_cases import CASES, Case
from tests.load.values import (
    connected,
    copy,
    load,
    make_rows,
    make_validator,
    plan_for,
    quoted_csv,
    stored,
)

_TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s', 'a "b"', 'ünïcode');
CREATE DOMAIN positive AS numeric(7,2) CHECK (VALUE > 0);
CREATE FUNCTION shouting(value text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value = 'THROW' THEN RAISE EXCEPTION 'thrown: %', value; END IF;
    RETURN value = upper(value);
END $$;
CREATE DOMAIN shout AS text CHECK (shouting(VALUE));
"""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.type)
def test_the_validator_takes_what_copy_takes_and_the_same_is_stored(empty_database: str, case: Case) -> None:
    # One loop and one set of connections for all examples: to connect for each would take most of the time.
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        pool = runner.run(stack.enter_async_context(connected(empty_database)))
        runner.run(pool.execute(f"{_TYPES} CREATE TABLE got (n int, v {case.type}); CREATE TABLE want (LIKE got)"))
        binary = 0

        # A failure names the value; to shrink it would take longer than the test may.
        @settings(
            max_examples=8,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(case.values(), min_size=40, max_size=80))
        def examine(values: list[str]) -> None:
            nonlocal binary
            binary += runner.run(_compare(pool, [*values, *case.examples]))

        examine()
        runner.run(stack.aclose())
    assert (binary > 0) == case.binary, "the test must see the fast path where there is one"


async def _compare(pool: Pool, values: list[str]) -> int:
    """Compare what becomes of some values; how many of them took the fast path."""
    async with pool.acquire() as connection:
        plan, oracle = await plan_for(connection, "got"), await plan_for(connection, "want")
        records = [(str(number), value) for number, value in enumerate(values)]
        encoded = await make_validator(plan, pool).validate(make_rows(plan, records))
        rejected = {rejection.line - 2: rejection for rejection in encoded.rejections}
        transaction = connection.transaction()
        await transaction.start()
        try:
            # What the validator lets through, COPY takes: in one go. What it rejects, COPY refuses: one by one.
            taken = [record for number, record in enumerate(records) if number not in rejected]
            wrong = await _refused(connection, oracle, taken)
            assert not wrong, "let through, but refused by COPY"
            for number, rejection in rejected.items():
                error = await _refused(connection, oracle, [records[number]])
                assert error, f"rejected, but taken by COPY: {values[number]!r}, {rejection}"
                assert rejection.column == "v"
                assert rejection.reason.startswith(str(error[values[number]].args[0])[:200])
            assert await load(connection, plan, encoded) == len(taken)
            if await stored(connection, "got") != await stored(connection, "want"):
                pytest.fail(f"stored differently: {await _differences(connection, values)}")
        finally:
            await transaction.rollback()
        return len(encoded.binary_lines)


async def _refused(
    connection: Connection, plan: Plan, records: list[tuple[str, str]]
) -> dict[str, asyncpg.PostgresError]:
    """COPY the records; those that it refuses, found by halving."""
    try:
        async with connection.transaction():
            await copy(connection, plan, BytesIO(quoted_csv(records)), "csv")
    except asyncpg.PostgresError as exc:
        if len(records) == 1:
            return {records[0][1]: exc}
        middle = len(records) // 2
        first = await _refused(connection, plan, records[:middle])
        return first | await _refused(connection, plan, records[middle:])
    return {}


async def _differences(connection: Connection, values: list[str]) -> Any:
    rows = await connection.fetch(
        "SELECT n, got.v::text AS got, want.v::text AS want FROM got FULL JOIN want USING (n)"
        " WHERE got.v::text IS DISTINCT FROM want.v::text"
    )
    return [(values[row["n"]], row["got"], row["want"]) for row in rows] or "the texts are equal, the bytes are not"
