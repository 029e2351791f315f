"""What more costs: more rows, more distance to the database, more worker processes on one queue."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

import asyncpg
from yarl import URL

from bench.frame import Chapter, Figure, Series, in_turns
from bench.runs import Loaded, copy_once, load_once
from bench.sizes import Sizes
from bench.stand import File, Stand, say
from bench.tables import EVENTS
from stream_api.config import MIB
from stream_api.dev.ports import find_port
from stream_api.dev.server import spawn

TITLE: Final = "More rows, more distance, more workers"
_PSQL: Final = r"psql \copy"
_LANES: Final = (1, 2, 4)
#: Questions that a round trip is measured by.
_PINGS: Final = 50


async def measure(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    """Fill the chapter."""
    await stand.make_tables(EVENTS)
    await _curve(stand, sizes, chapter)
    await _delays(stand, sizes, chapter)
    await _workers(stand, sizes, chapter)


def _ours(stand: Stand, file: File, **settings: object) -> Callable[[], Awaitable[Loaded]]:
    return lambda: load_once(stand, file, EVENTS.target(keyed=True), **settings)


def _psql(stand: Stand, file: File, dsn: str | None = None) -> Callable[[], Awaitable[Loaded]]:
    async def run() -> Loaded:
        target = EVENTS.target(keyed=True)
        seconds = await copy_once(stand, file, target, columns=EVENTS.column_names, dsn=dsn)
        return Loaded(file.rows, seconds, seconds, 0)

    return run


async def _curve(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    ours: list[list[Loaded]] = []
    theirs: list[list[Loaded]] = []
    for rows in sizes.curve_rows:
        file = await stand.files.of(EVENTS, rows)
        times = sizes.times if rows <= sizes.event_rows else sizes.few_times
        found = await in_turns({"ours": _ours(stand, file), "psql": _psql(stand, file)}, times)
        say(f"  {rows:,} rows: {statistics.median(each.seconds for each in found['ours']):.2f} s")
        ours.append(found["ours"])
        theirs.append(found["psql"])
        chapter.figures.append(
            Figure(
                name=f"scaling.rows_{rows}",
                title=f"Load of {rows:,} rows",
                unit="s",
                values=[each.seconds for each in found["ours"]],
                reference=_PSQL,
                reference_values=[each.seconds for each in found["psql"]],
                higher_is_better=False,
            )
        )
        chapter.figures.append(
            Figure(
                name=f"scaling.rows_{rows}.memory",
                title=f"Peak RSS, load of {rows:,} rows",
                unit="MB",
                values=[each.peak_rss_bytes / MIB for each in found["ours"]],
                higher_is_better=False,
            )
        )
    xs = [float(rows) for rows in sizes.curve_rows]
    for label, runs in (("stream-api", ours), (_PSQL, theirs)):
        ys = [statistics.median(each.seconds for each in loads) for loads in runs]
        chapter.series.append(Series(name="curve.seconds", label=label, xs=xs, ys=ys))
    peaks = [statistics.median(each.peak_rss_bytes / MIB for each in loads) for loads in ours]
    chapter.series.append(Series(name="curve.memory", label="stream-api, peak RSS", xs=xs, ys=peaks))


async def _delays(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    file = await stand.files.of(EVENTS, sizes.delay_rows)
    curves: dict[str, list[float]] = {}
    distances = []
    for delay_ms in (0.0, *sizes.delays_ms):
        async with _distant(stand, delay_ms) as dsn:
            trip_ms = await _round_trip_ms(dsn)
            distances.append(trip_ms)
            contestants = {f"{lanes}": _ours(stand, file, database_url=dsn, lanes=lanes) for lanes in _LANES}
            found = await in_turns({**contestants, "psql": _psql(stand, file, dsn)}, sizes.few_times)
        theirs = [each.rate for each in found.pop("psql")]
        curves.setdefault(_PSQL, []).append(statistics.median(theirs))
        for lanes, loads in found.items():
            rates = [each.rate for each in loads]
            label = f"{lanes} lane{'' if lanes == '1' else 's'}"
            curves.setdefault(label, []).append(statistics.median(rates))
            chapter.figures.append(
                Figure(
                    name=f"scaling.delay_{delay_ms:g}.lanes_{lanes}",
                    title=f"Load of {file.rows:,} rows, {label}, {delay_ms:g} ms more to the database",
                    unit="rows/s",
                    values=rates,
                    reference=_PSQL + ", as far away",
                    reference_values=theirs,
                    note=f"a round trip of SELECT 1 took {trip_ms:.2f} ms",
                )
            )
        say(f"  {delay_ms:g} ms: a round trip takes {trip_ms:.2f} ms")
    chapter.series += [Series(name="delay", label=label, xs=distances, ys=ys) for label, ys in curves.items()]


@asynccontextmanager
async def _distant(stand: Stand, delay_ms: float) -> AsyncIterator[str]:
    """A URL of the database by way of the proxy, also without delay: so that it takes part in every comparison."""
    url, port = URL(stand.dsn), find_port()
    command = [sys.executable, "-m", "bench.proxy", "--to", f"{url.host}:{url.port or 5432}"]
    command += ["--listen", str(port), "--delay-ms", str(delay_ms)]
    process = spawn(command, log=stand.folder / "proxy.log")
    try:
        dsn = str(url.with_host("127.0.0.1").with_port(port))
        await _until_connected(dsn)
        yield dsn
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def _until_connected(dsn: str) -> None:
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError, asyncpg.PostgresConnectionError):
                await (await asyncpg.connect(dsn)).close()
                return
            await asyncio.sleep(0.05)


async def _round_trip_ms(dsn: str) -> float:
    connection = await asyncpg.connect(dsn)
    try:
        taken = []
        for _ in range(_PINGS):
            began = time.monotonic()
            await connection.fetchval("SELECT 1")
            taken.append(time.monotonic() - began)
        return statistics.median(taken) * 1000
    finally:
        await connection.close()


async def _workers(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    """Several files on one queue, and more and more workers that take them."""
    file = await stand.files.of(EVENTS, sizes.worker_rows)
    found = await in_turns(
        {str(workers): _with_workers(stand, sizes, file, workers) for workers in sizes.workers}, sizes.few_times
    )
    one = found[str(sizes.workers[0])]
    for workers in sizes.workers:
        rates = found[str(workers)]
        say(f"  {workers} workers: {statistics.median(rates):,.0f} rows/s")
        chapter.figures.append(
            Figure(
                name=f"scaling.workers_{workers}",
                title=f"{sizes.worker_files} files of {file.rows:,} rows on one queue, worker processes: {workers}",
                unit="rows/s",
                values=rates,
                reference=f"worker processes: {sizes.workers[0]}",
                reference_values=one,
            )
        )
    xs, ys = [float(each) for each in sizes.workers], [statistics.median(found[str(each)]) for each in sizes.workers]
    chapter.series.append(Series(name="workers", label=f"{sizes.worker_files} files at once", xs=xs, ys=ys))


def _with_workers(stand: Stand, sizes: Sizes, file: File, workers: int) -> Callable[[], Awaitable[float]]:
    async def run() -> float:
        # Without a key, for the same file again and again.
        target = EVENTS.target(keyed=False)
        await stand.empty(target)
        async with stand.running({"target_table": target}, options=["--no-worker"]) as running:
            accepted = [await running.client.upload(file.path) for _ in range(sizes.worker_files)]
            environment = {**stand.environment, "STREAM_API_TARGET_TABLE": target, "STREAM_API_LOG_FORMAT": "json"}
            command = [sys.executable, "-m", "stream_api", "worker"]
            processes = [
                spawn(command, log=stand.folder / f"worker-{number}.log", environment=environment)
                for number in range(workers)
            ]
            try:
                ended = await asyncio.gather(*(running.client.end(each.upload_id) for each in accepted))
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    await asyncio.to_thread(process.wait)
        # From the first that was taken: how long Python takes to start is not what a queue costs.
        began, done = ([datetime.fromisoformat(each[name]) for each in ended] for name in ("startedAt", "completedAt"))
        rows: int = sum(each["rowsProcessed"] for each in ended)
        return rows / (max(done) - min(began)).total_seconds()

    return run
