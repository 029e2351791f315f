"""Loading: rows a second against psql's copy of the same file into the same table, and how soon a row is seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg

from bench.frame import BenchFailed, Chapter, Figure, Goal, in_turns
from bench.runs import Loaded, binary_file, copy_once, finish, has_pgloader, load_once, pgloader_once
from bench.sizes import Sizes
from bench.stand import File, Stand, say
from bench.tables import EVENTS, EVENTS_AS_CSV, Table

TITLE: Final = "Loading"
_PSQL: Final = r"psql \copy"
#: How often it is looked whether a row is there.
_LOOK_SECONDS: Final = 0.002
_GIVE_UP_SECONDS: Final = 60.0
#: Of the load after which a service's connections are open.
_WARM_UP_ROWS: Final = 1_000


async def measure(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    """Fill the chapter."""
    await stand.make_tables(EVENTS, EVENTS_AS_CSV, *(table for table, _ in sizes.table_rows))
    file = await stand.files.of(EVENTS, sizes.event_rows)
    await _events(stand, sizes, file, chapter)
    for table, rows in sizes.table_rows:
        await _other(stand, sizes, table, await stand.files.of(table, rows), chapter)
    await _first_row(stand, sizes, file, chapter)


def _ours(
    stand: Stand, file: File, table: Table, *, keyed: bool = True, lanes: int = 2
) -> Callable[[], Awaitable[Loaded]]:
    async def run() -> Loaded:
        loaded = await load_once(stand, file, table.target(keyed=keyed), lanes=lanes)
        say(f"  {table.name}, {lanes} lanes, key {keyed}: {loaded.rate:,.0f} rows/s")
        return loaded

    return run


def _psql(stand: Stand, file: File, table: Table, *, keyed: bool = True) -> Callable[[], Awaitable[Loaded]]:
    async def run() -> Loaded:
        target = table.target(keyed=keyed)
        binary = file.path.suffix == ".binary"
        seconds = await copy_once(stand, file, target, columns=table.column_names, binary=binary)
        say(f"  {table.name}, psql, key {keyed}: {file.rows / seconds:,.0f} rows/s")
        return Loaded(file.rows, seconds, seconds, 0)

    return run


async def _events(stand: Stand, sizes: Sizes, file: File, chapter: Chapter) -> None:
    binary = await binary_file(stand, file, EVENTS.target(keyed=True), columns=EVENTS.column_names)
    contestants = {
        "psql": _psql(stand, file, EVENTS),
        "psql_no_key": _psql(stand, file, EVENTS, keyed=False),
        "psql_numeric": _psql(stand, file, EVENTS_AS_CSV),
        "psql_binary": _psql(stand, binary, EVENTS),
        **{f"lanes_{lanes}": _ours(stand, file, EVENTS, lanes=lanes) for lanes in sizes.lanes},
        "no_key": _ours(stand, file, EVENTS, keyed=False),
        "csv": _ours(stand, file, EVENTS_AS_CSV),
    }
    if has_pgloader():

        async def pgloader() -> Loaded:
            seconds = await pgloader_once(stand, file, EVENTS, stand.folder, keyed=True)
            return Loaded(file.rows, seconds, seconds, 0)

        contestants["pgloader"] = pgloader
    else:
        chapter.skipped.append("pgloader is not installed (on Debian: apt-get install pgloader)")
    found = await in_turns(contestants, sizes.times)
    rates = {name: [each.rate for each in runs] for name, runs in found.items()}

    def compare(
        name: str, title: str, *, ours: str, theirs: str = "psql", reference: str = _PSQL, goal: Goal | None = None
    ) -> None:
        chapter.figures.append(
            Figure(
                name=f"load.events.{name}",
                title=title,
                unit="rows/s",
                values=rates[ours],
                reference=reference,
                reference_values=rates[theirs],
                goal=goal,
            )
        )

    for lanes in sizes.lanes:
        compare(
            f"lanes_{lanes}",
            f"7 columns, {lanes} lane{'s' if lanes > 1 else ''}, with primary key",
            ours=f"lanes_{lanes}",
            goal=Goal(must=1.3, aim=1.6) if lanes == 2 else None,
        )
    compare("no_key", "7 columns, 2 lanes, without key", ours="no_key", theirs="psql_no_key")
    compare("csv", "7 columns, 2 lanes, COPY in CSV (a numeric of any precision)", ours="csv", theirs="psql_numeric")
    compare(
        "binary_against_csv", "COPY in binary, 2 lanes", ours="lanes_2", theirs="csv", reference="the same, COPY in CSV"
    )
    compare("psql_binary", f"{_PSQL} of a binary file", ours="psql_binary", reference=f"{_PSQL} of the CSV file")
    if "pgloader" in found:
        compare(
            "pgloader",
            "7 columns, 2 lanes, with primary key",
            ours="lanes_2",
            theirs="pgloader",
            reference="pgloader, its defaults",
        )
    chapter.figures.append(
        Figure(
            name="load.events.whole",
            title="7 columns, 2 lanes, from the first byte uploaded to the last row",
            unit="rows/s",
            values=[each.rows / each.whole_seconds for each in found["lanes_2"]],
            reference=_PSQL,
            reference_values=rates["psql"],
            note="The file goes into the object storage first; psql reads it from the disk.",
        )
    )


async def _other(stand: Stand, sizes: Sizes, table: Table, file: File, chapter: Chapter) -> None:
    found = await in_turns({"ours": _ours(stand, file, table), "psql": _psql(stand, file, table)}, sizes.times)
    chapter.figures.append(
        Figure(
            name=f"load.{table.name}",
            title=f"{table.title}, 2 lanes, with primary key ({file.size_bytes // file.rows:,} bytes a row)",
            unit="rows/s",
            values=[each.rate for each in found["ours"]],
            reference=_PSQL,
            reference_values=[each.rate for each in found["psql"]],
        )
    )


async def _first_row(stand: Stand, sizes: Sizes, file: File, chapter: Chapter) -> None:
    """How soon a row is seen, with a service that has loaded something before."""
    target = EVENTS.target(keyed=True)
    found = []
    small = await stand.files.of(EVENTS, _WARM_UP_ROWS)
    await stand.empty(target)
    async with stand.running({"target_table": target}) as running:
        await finish(running, await running.client.upload(small.path), small.rows)
        for _ in range(sizes.times):
            await stand.empty(target)
            looking = asyncio.create_task(_first_seen(stand.dsn, target))
            accepted = await running.client.upload(file.path)
            found.append((await looking - accepted.at) * 1000)
            await finish(running, accepted, file.rows)
            say(f"  first row after {found[-1]:.0f} ms")
    chapter.figures.append(
        Figure(
            name="load.first_row",
            title="First row visible in the table after 202",
            unit="ms",
            values=found,
            higher_is_better=False,
            goal=Goal(must=500, aim=150, of="value"),
            note=f"it is looked for every {_LOOK_SECONDS * 1000:.0f} ms",
        )
    )


async def _first_seen(dsn: str, target: str) -> float:
    """When a table is first seen to have a row, by `time.monotonic`."""
    connection = await asyncpg.connect(dsn)
    try:
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        while not await connection.fetchval(f"SELECT EXISTS (SELECT FROM {target})"):
            if time.monotonic() > deadline:
                msg = f"no row was seen in {target} after {_GIVE_UP_SECONDS:.0f} s"
                raise BenchFailed(msg)
            await asyncio.sleep(_LOOK_SECONDS)
        return time.monotonic()
    finally:
        await connection.close()
