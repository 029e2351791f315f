"""Everything at once under a hard 512 MB: many uploads, loads that run, and somebody who asks how it is.

How late the service's event loop is, a ticker in it says; what of that is the machine's doing, the same ticker in a
process that does nothing. What a client sees, a prober says that asks `/healthz` every 10 ms, and another that asks
for a status ten times a second.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bench.client import Accepted, curl
from bench.frame import BenchFailed, Chapter, Figure, Goal, Series, percentile
from bench.memory import LAUNCHER, LIMIT_BYTES, limited
from bench.prober import FAILED_SECONDS
from bench.processes import Sampler
from bench.runs import finish
from bench.service import ServiceFailed
from bench.sizes import Sizes
from bench.stand import Running, Stand, say
from bench.tables import EVENTS
from bench.ticker import Ticks
from stream_api.config import MIB
from stream_api.dev.server import spawn

TITLE: Final = "Everything at once"
_SHARES: Final = (0.5, 0.9, 0.99, 0.999, 1.0)
_HEALTH: Final = "/healthz"
_START_SECONDS: Final = 30.0


async def measure(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    """Fill the chapter."""
    await stand.make_tables(EVENTS)
    for _ in range(sizes.few_times):
        await _load_alone(stand, sizes, chapter)
    await _uploads_and_loads(stand, sizes, chapter)


async def _load_alone(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    """How late the loop is while one load runs, and nothing else."""
    file = await stand.files.of(EVENTS, sizes.event_rows)
    target = EVENTS.target(keyed=True)
    await stand.empty(target)
    async with (
        limited(stand, target) as (running, folder),
        _idle(stand) as idle,
        _probing(running.service.url + _HEALTH, folder / "alone.json", 0.01),
    ):
        accepted = await running.client.upload(file.path)
        await finish(running, accepted, file.rows)
        ended = time.monotonic()
    lags = (await _read(folder / "ticks.json")).between(accepted.at, ended)
    machine = (await _read(idle / "ticks.json")).between(accepted.at, ended)
    health = (await _read(folder / "alone.json")).between(accepted.at, ended)
    _lag_figure(chapter, "together.alone.lag", "Event loop's lag while one load runs, p99", lags, machine)
    _latency_figure(chapter, "together.alone.healthz", f"`{_HEALTH}` while one load runs, p99", health)


async def _uploads_and_loads(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    """Many uploads at once, while what was uploaded is loaded."""
    first = await stand.files.of(EVENTS, sizes.event_rows)
    file = await stand.files.of_size(EVENTS, sizes.together_bytes)
    # The same file again and again: with a key every row but the first would be a duplicate.
    target = EVENTS.target(keyed=False)
    await stand.empty(target)
    failed: list[str] = []
    async with limited(stand, target) as (running, folder), _idle(stand) as idle:
        service = running.service
        loading = await running.client.upload(first.path)
        status = f"{service.url}/upload/{loading.upload_id}/status"
        with Sampler(service.pid, service.group) as sampler:
            async with (
                _probing(service.url + _HEALTH, folder / "health.json", 0.01),
                _probing(status, folder / "status.json", 0.1),
            ):
                began = time.monotonic()
                found = await asyncio.gather(
                    *(curl(service.url, file.path) for _ in range(sizes.together)), return_exceptions=True
                )
                uploaded = time.monotonic()
                accepted = [each for each in found if isinstance(each, Accepted)]
                failed += [str(each) for each in found if isinstance(each, BaseException)]
                failed += await _finish_all(running, [(loading, first.rows), *((each, file.rows) for each in accepted)])
                loaded = time.monotonic()
        await asyncio.to_thread(service.sample)
        peak_group = service.peak_group_bytes or 0
    say(f"  {sizes.together} uploads: {len(failed)} failed, peak {sampler.peak() / MIB:.0f} MB")
    chapter.texts += [f"A failure: {each}" for each in failed[:5]]
    chapter.figures.append(
        Figure(
            name="together.failures",
            title=f"Failed, of {sizes.together} uploads of {file.size_bytes / MIB:.0f} MB at once and their loads",
            unit="",
            values=[float(len(failed))],
            higher_is_better=False,
            goal=Goal(must=0, aim=0, of="value"),
        )
    )
    chapter.figures.append(
        Figure(
            name="together.peak_rss",
            title=f"Peak RSS with {sizes.together} uploads and a load at once",
            unit="MB",
            values=[sampler.peak() / MIB],
            reference="the limit",
            reference_values=[LIMIT_BYTES / MIB],
            higher_is_better=False,
            goal=Goal(must=512, aim=300, of="value"),
        )
    )
    chapter.figures.append(
        Figure(
            name="together.peak_group",
            title="The same as the control group counts it",
            unit="MB",
            values=[peak_group / MIB],
            reference="the limit",
            reference_values=[LIMIT_BYTES / MIB],
            higher_is_better=False,
        )
    )
    rate = len(accepted) * file.size_bytes / MIB / (uploaded - began)
    chapter.figures.append(Figure(name="together.rate", title="All uploads together", unit="MB/s", values=[rate]))
    ticks, machine = await _read(folder / "ticks.json"), await _read(idle / "ticks.json")
    health, asked = await _read(folder / "health.json"), await _read(folder / "status.json")
    for stage, since, until in (("uploads", began, uploaded), ("loads", uploaded, loaded)):
        title = "uploads and a load run" if stage == "uploads" else "the loads run, one after another"
        lags = ticks.between(since, until)
        _lag_figure(
            chapter,
            f"together.{stage}.lag",
            f"Event loop's lag while {title}, p99",
            lags,
            machine.between(since, until),
        )
        _latency_figure(
            chapter,
            f"together.{stage}.healthz",
            f"`{_HEALTH}` while {title}, p99",
            health.between(since, until),
        )
        _latency_figure(
            chapter, f"together.{stage}.status", f"A status while {title}, p99", asked.between(since, until)
        )


def _lag_figure(chapter: Chapter, name: str, title: str, lags: list[float], machine: list[float]) -> None:
    if not lags or not machine:
        chapter.skipped.append(f"{title}: it was over before the ticker ticked")
        return
    chapter.figures.append(
        Figure(
            name=name,
            title=title,
            unit="ms",
            values=[percentile(lags, 0.99) * 1000],
            reference="the same ticker in an idle process",
            reference_values=[percentile(machine, 0.99) * 1000],
            higher_is_better=False,
            goal=Goal(must=25, aim=10, of="value") if name == "together.alone.lag" else None,
            note=_shares(lags),
        )
    )
    chapter.series.append(_distribution(name, "event loop", lags))
    chapter.series.append(_distribution(name, "idle process", machine))


def _latency_figure(chapter: Chapter, name: str, title: str, latencies: list[float]) -> None:
    if not latencies:
        chapter.skipped.append(f"{title}: it was over before anybody asked")
        return
    lost = sum(each >= FAILED_SECONDS for each in latencies)
    chapter.figures.append(
        Figure(
            name=name,
            title=title,
            unit="ms",
            values=[percentile(latencies, 0.99) * 1000],
            higher_is_better=False,
            note=f"{_shares(latencies)}; {lost} of {len(latencies)} not answered",
        )
    )
    chapter.series.append(_distribution(name, title, latencies))


def _shares(seconds: list[float]) -> str:
    return ", ".join(f"p{100 * share:g} {percentile(seconds, share) * 1000:.1f} ms" for share in _SHARES)


def _distribution(name: str, label: str, seconds: list[float]) -> Series:
    shares = [number / 1000 for number in (*range(10, 990, 10), *range(990, 1001))]
    return Series(name=name, label=label, xs=shares, ys=[percentile(seconds, share) * 1000 for share in shares])


async def _finish_all(running: Running, accepted: list[tuple[Accepted, int]]) -> list[str]:
    """Wait for the end of all loads; what became of those that did not load every row."""
    found = await asyncio.gather(*(finish(running, each, rows) for each, rows in accepted), return_exceptions=True)
    for each in found:
        if isinstance(each, BaseException) and not isinstance(each, BenchFailed | ServiceFailed | OSError):
            raise each
    return [str(each) for each in found if isinstance(each, BaseException)]


@asynccontextmanager
async def _probing(url: str, file: Path, period_seconds: float) -> AsyncIterator[None]:
    """A prober that asks while the body runs; then the file is written."""
    command = [sys.executable, "-m", "bench.prober", "--url", url, "--period", str(period_seconds)]
    async with _process([*command, "--watch", str(file)], file.with_suffix(".log")):
        yield


@asynccontextmanager
async def _idle(stand: Stand) -> AsyncIterator[Path]:
    """A process with nothing but a ticker while the body runs; the folder has its ticks then."""
    folder = stand.folder / "idle"
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    command = [sys.executable, *LAUNCHER, "idle", "--watch", str(folder)]
    async with _process(command, folder / "log"):
        yield folder


@asynccontextmanager
async def _process(command: list[str], log: Path) -> AsyncIterator[None]:
    await asyncio.to_thread(log.unlink, missing_ok=True)
    process = spawn(command, log=log)
    try:
        await _until_ready(log)
        yield
    finally:
        process.terminate()
        code = await asyncio.to_thread(process.wait)
    if code:
        msg = f"{' '.join(command[1:4])} ended with {code}: {await asyncio.to_thread(log.read_text)}"
        raise BenchFailed(msg)


async def _until_ready(log: Path) -> None:
    """Wait until a process of ours has said so: before, a signal would just end it."""
    deadline = time.monotonic() + _START_SECONDS
    while "ready" not in (said := await asyncio.to_thread(log.read_text)):
        if time.monotonic() > deadline:
            msg = f"{log.name}: not ready after {_START_SECONDS:.0f} s: {said}"
            raise BenchFailed(msg)
        await asyncio.sleep(0.02)


async def _read(file: Path) -> Ticks:
    return await asyncio.to_thread(Ticks.read, file)
