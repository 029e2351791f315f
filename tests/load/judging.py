"""`COPY` as the judge of a load: the same values of a type are taken, and the same is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from io import BytesIO
from typing import Any, Final

import asyncpg
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stream_api.datasets.plan import Plan
from stream_api.dialects.dialect import Dialect
from stream_api.ledger.pool import Connection, Pool
from stream_api.load.model import Encoded
from stream_api.load.parser import Parser
from tests.load.other_value_cases import TYPES
from tests.load.test_cutter import cut
from tests.load.value_cases import Case
from tests.load.values import connected, copy, load, make_validator, plan_for, quoted_csv, stored

_TYPES: Final = f"""
CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s', 'a "b"', 'ünïcode');
CREATE DOMAIN positive AS numeric(7,2) CHECK (VALUE > 0);
CREATE FUNCTION shouting(value text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value = 'THROW' THEN RAISE EXCEPTION 'thrown: %', value; END IF;
    RETURN value = upper(value);
END $$;
CREATE DOMAIN shout AS text CHECK (shouting(VALUE));
{TYPES}
"""
#: Values of one comparison.
LEAST, MOST = 40, 80
#: A record of the file: its number, and the value.
Record = tuple[str, str | None]


class Differs(AssertionError):
    """What COPY takes is refused, or the other way round, or something else is stored."""


def compare_type(dsn: str, case: Case, *, examples: int, seeded: Callable[[Any], Any] | None = None) -> tuple[int, int]:
    """Compare what becomes of some lists of values of a type, those of the case among them.

    :param dsn: of a database in which nothing is yet, or what this has left there.
    :param examples: lists, of `LEAST` to `MOST` values each.
    :param seeded: for other values than the usual ones.
    :returns: how many values there were, and how many of them took the fast path.
    :raises Differs: a value, or what is stored of it.
    """
    # One loop and one set of connections for all examples: to connect for each would take most of the time.
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        pool = runner.run(stack.enter_async_context(connected(dsn)))
        runner.run(_prepare(pool, case.type))
        compared = binary = 0

        # A failure names the value; to shrink it would take longer than the test may.
        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=seeded is None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(case.values(), min_size=LEAST, max_size=MOST))
        def examine(values: list[str]) -> None:
            nonlocal binary, compared
            every = [*values, *case.examples, None]
            compared += len(every)
            binary += runner.run(_compare(pool, every))

        try:
            (examine if seeded is None else seeded(examine))()
        finally:
            runner.run(stack.aclose())
    return compared, binary


async def _prepare(pool: Pool, column_type: str) -> None:
    if await pool.fetchval("SELECT to_regtype('mood')") is None:
        await pool.execute(_TYPES)
    await pool.execute(
        f"DROP TABLE IF EXISTS got, want; CREATE TABLE got (n int, v {column_type}); CREATE TABLE want (LIKE got)"
    )


async def _compare(pool: Pool, values: Sequence[str | None]) -> int:
    """Compare what becomes of some values; how many of them took the fast path."""
    async with pool.acquire() as connection:
        plan, oracle = await plan_for(connection, "got"), await plan_for(connection, "want")
        records: list[Record] = [(str(number), value) for number, value in enumerate(values)]
        encoded = await _encoded(pool, plan, records)
        rejected = {int(each.record.split(b'"')[1]): each for batch in encoded for each in batch.rejections}
        transaction = connection.transaction()
        await transaction.start()
        try:
            # What the validator lets through, COPY takes: in one go. What it rejects, COPY refuses: one by one.
            taken = [record for number, record in enumerate(records) if number not in rejected]
            wrong = await _refused(connection, oracle, taken)
            if wrong:
                raise Differs(f"let through, but refused by COPY: {wrong}")
            for number, rejection in rejected.items():
                error = await _refused(connection, oracle, [records[number]])
                if not error:
                    raise Differs(f"rejected, but taken by COPY: {values[number]!r}, {rejection}")
                assert rejection.column == "v"
                if values[number] is not None:  # of a column that must have a value we say so ourselves
                    assert rejection.reason.startswith(str(error[values[number]].args[0])[:200])
            assert sum([await load(connection, plan, batch) for batch in encoded]) == len(taken)
            if await stored(connection, "got") != await stored(connection, "want"):
                raise Differs(f"stored differently: {await _differences(connection, values)}")
        finally:
            await transaction.rollback()
        return sum(len(batch.binary_lines) for batch in encoded)


async def _encoded(pool: Pool, plan: Plan, records: Sequence[Record]) -> list[Encoded]:
    """What a load makes of a file of these records."""
    validator, parser = make_validator(plan, pool), Parser(Dialect(), plan.column_names)
    batches = cut(b"n,v\n" + quoted_csv(records), batch_bytes=1000)
    return [await validator.validate(parser.parse(batch)) for batch in batches]


async def _refused(
    connection: Connection, plan: Plan, records: Sequence[Record]
) -> dict[str | None, asyncpg.PostgresError]:
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


async def _differences(connection: Connection, values: Sequence[str | None]) -> Any:
    rows = await connection.fetch(
        "SELECT n, got.v::text AS got, want.v::text AS want FROM got FULL JOIN want USING (n)"
        " WHERE got.v::text IS DISTINCT FROM want.v::text"
    )
    return [(values[row["n"]], row["got"], row["want"]) for row in rows] or "the texts are equal, the bytes are not"
