"""Memory under a hard limit: over time for files of several sizes, for clients that stop, for columns of one digit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.frame import Chapter, Figure, Goal, Series, in_turns
from bench.processes import Sample, Sampler
from bench.runs import finish
from bench.sizes import Sizes
from bench.stand import File, Running, Stand, say
from bench.tables import DIGITS, EVENTS
from stream_api.config import MIB
from stream_api.dev.limits import memory_limit
from stream_api.memory import memory_need

TITLE: Final = "Memory"
LIMIT_BYTES: Final = 512 * MIB
LAUNCHER: Final = ("-m", "bench.launcher")
#: What a client that stops has sent before: less than a part, so that nothing of it can be put away.
_SENT_BYTES: Final = 6 * MIB


@dataclass(frozen=True, slots=True)
class Watched:
    """The memory of one load.

    :param samples: with times from the start of the upload, in seconds.
    :param peaks: in bytes, by what went on: `start`, `upload`, `load`.
    :param group: of the control group, in bytes, when it was greatest.
    :param group_peak: as the kernel itself remembers it.
    :param channels: what the load's channels held, see `ChannelStats`.
    """

    samples: list[Sample]
    peaks: dict[str, int]
    group: dict[str, int]
    group_peak: int
    channels: list[dict[str, Any]]

    @property
    def peak(self) -> int:
        """Of all of it."""
        return max(self.peaks.values())


async def measure(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    """Fill the chapter."""
    await stand.make_tables(EVENTS, DIGITS)
    files = {size // MIB: await stand.files.of_size(EVENTS, size) for size in sizes.memory_bytes}
    found = await in_turns(
        {str(megabytes): _one(stand, file, EVENTS.target(keyed=True)) for megabytes, file in files.items()},
        sizes.few_times,
    )
    digits = await stand.files.of(DIGITS, sizes.digit_rows)
    found["digits"] = [await _one(stand, digits, DIGITS.target(keyed=False))()]
    _tell(stand, found, chapter)
    await _paused(stand, sizes, chapter)


@asynccontextmanager
async def limited(stand: Stand, target: str) -> AsyncIterator[tuple[Running, Path]]:
    """A service under the limit, run by the launcher; the folder has what it wrote when it has ended."""
    folder = stand.folder / "watched"
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    with memory_limit(LIMIT_BYTES) as limit:
        if limit.limit_bytes is None:
            say(f"  no memory limit: {limit.description}")
        await asyncio.to_thread(_count_sockets, limit.group(os.getpid()))
        async with stand.running(
            {"target_table": target, "memory_limit_bytes": LIMIT_BYTES},
            limit=limit,
            program=LAUNCHER,
            options=["--watch", str(folder)],
        ) as running:
            yield running, folder


def _count_sockets(group: Path | None) -> None:
    """Have version 1 of control groups count the buffers of sockets, as it does once these have a limit."""
    limit = None if group is None else group / "memory.kmem.tcp.limit_in_bytes"
    if limit is not None and limit.exists():
        limit.write_text(str(LIMIT_BYTES), encoding="ascii")


def _one(stand: Stand, file: File, target: str) -> Any:
    async def run() -> Watched:
        await stand.empty(target)
        async with limited(stand, target) as (running, folder):
            service = running.service
            with Sampler(service.pid, service.group) as sampler:
                began = time.monotonic()
                accepted = await running.client.upload(file.path)
                await finish(running, accepted, file.rows)
                ended = time.monotonic()
                await asyncio.to_thread(service.sample)
        peaks = {
            "start": sampler.samples[0].rss,
            "upload": sampler.peak(began, accepted.at),
            "load": sampler.peak(accepted.at, ended),
        }
        say(f"  {file.path.name}: {', '.join(f'{name} {size / MIB:.0f} MB' for name, size in peaks.items())}")
        channels = json.loads(await asyncio.to_thread((folder / "channels.json").read_text))
        samples = [Sample(each.at - began, each.process, each.group) for each in sampler.samples]
        return Watched(samples, peaks, sampler.heaviest_group(), service.peak_group_bytes or 0, channels)

    return run


def _tell(stand: Stand, found: dict[str, list[Watched]], chapter: Chapter) -> None:
    need = memory_need(stand.settings, api=True, worker=True)
    planned = need.total
    sizes = [name for name in found if name != "digits"]
    for name, runs in found.items():
        title = "40 one-digit columns" if name == "digits" else f"{int(name):,} MB"
        for stage in ("upload", "load"):
            chapter.figures.append(
                Figure(
                    name=f"memory.{name}.{stage}",
                    title=f"Peak RSS, {stage} of {title}",
                    unit="MB",
                    values=[run.peaks[stage] / MIB for run in runs],
                    reference="the formula",
                    reference_values=[planned / MIB] * len(runs),
                    higher_is_better=False,
                    goal=Goal(must=220, aim=160, of="value") if (name, stage) == ("1024", "load") else None,
                )
            )
        if all(run.group_peak for run in runs):
            chapter.figures.append(
                Figure(
                    name=f"memory.{name}.group",
                    title=f"Peak of the control group, {title}",
                    unit="MB",
                    values=[run.group_peak / MIB for run in runs],
                    reference="the formula",
                    reference_values=[planned / MIB] * len(runs),
                    higher_is_better=False,
                    note="with the kernel's buffers, without pages of files that other groups read first",
                )
            )
        first = runs[0]
        if name != "digits":
            xs, ys = [each.at for each in first.samples], [each.rss / MIB for each in first.samples]
            chapter.series.append(Series(name="memory", label=title, xs=xs, ys=ys))
    if len(sizes) > 1:
        chapter.figures.append(
            Figure(
                name="memory.growth",
                title=f"Peak RSS, load of {int(sizes[-1]):,} MB",
                unit="MB",
                values=[run.peaks["load"] / MIB for run in found[sizes[-1]]],
                reference=f"load of {int(sizes[0]):,} MB",
                reference_values=[run.peaks["load"] / MIB for run in found[sizes[0]]],
                higher_is_better=False,
                goal=Goal(must=1.1, aim=1.02),
            )
        )
    chapter.texts += [_peaks(found), _groups(found), _channels(found)]
    terms = ", ".join(f"{name} {getattr(need, name) / MIB:.0f}" for name in need.__slots__)
    chapter.texts.append(f"The formula (`stream_api/memory.py`) for these settings, in MB: {terms}.")


def _peaks(found: dict[str, list[Watched]]) -> str:
    lines = ["| file | at the start | peak of upload | peak of load |", "|---|---|---|---|"]
    for name, runs in found.items():
        lines += [f"| {name} | " + " | ".join(f"{size / MIB:.0f} MB" for size in runs[0].peaks.values()) + " |"]
    return "\n".join(["Resident memory of the first run by stage:", "", *lines])


def _groups(found: dict[str, list[Watched]]) -> str:
    lines = ["| file | peak | when sampled | anonymous | files | sockets |", "|---|---|---|---|---|---|"]
    for name, runs in found.items():
        group = runs[0].group
        cells = [f"{group[key] / MIB:.0f} MB" if key in group else "–" for key in ("total", "anon", "file", "sock")]
        lines.append(f"| {name} | {runs[0].group_peak / MIB:.0f} MB | " + " | ".join(cells) + " |")
    text = "What the control group counted when it held most (version 1 counts sockets beside the peak, 2 in it):"
    return "\n".join([text, "", *lines])


def _channels(found: dict[str, list[Watched]]) -> str:
    lines = ["| file | channel | peak | bound | senders waited |", "|---|---|---|---|---|"]
    for name, runs in found.items():
        # The last channel holds segments, of which each counts as one.
        for channel in runs[0].channels[:-1]:
            peak, bound = (f"{channel[key] / MIB:.2f} MB" for key in ("peak_bytes", "max_bytes"))
            lines.append(f"| {name} | {channel['name']} | {peak} | {bound} | {channel['blocked_seconds']:.1f} s |")
    return "\n".join(["What the load's channels held; who waits to send is not what is slow:", "", *lines])


async def _paused(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    """Clients that stop in the middle of an upload."""
    async with limited(stand, EVENTS.target(keyed=True)) as (running, _):
        clients = [asyncio.create_task(_send_and_stop(running.service.port)) for _ in range(sizes.paused)]
        with Sampler(running.service.pid, running.service.group) as sampler:
            await asyncio.sleep(sizes.paused_seconds)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    planned = memory_need(stand.settings, api=True, worker=True).total / MIB
    group = sampler.heaviest_group()
    say(f"  {sizes.paused} paused: {sampler.peak() / MIB:.0f} MB")
    for name, value in {"rss": sampler.peak(), **{f"group_{key}": size for key, size in group.items()}}.items():
        chapter.figures.append(
            Figure(
                name=f"memory.paused.{name}",
                title=f"{sizes.paused} paused uploads, {name.replace('_', ': ')}",
                unit="MB",
                values=[value / MIB],
                reference="the formula" if name in {"rss", "group_total"} else "",
                reference_values=[planned] if name in {"rss", "group_total"} else [],
                higher_is_better=False,
            )
        )


async def _send_and_stop(port: int) -> None:
    """Send some of an upload, as much as the service takes, and then nothing; until it is cancelled."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            b"POST /upload HTTP/1.1\r\nHost: bench\r\nContent-Length: 100000000\r\n"
            b"Content-Type: multipart/form-data; boundary=bench\r\n\r\n"
            b'--bench\r\nContent-Disposition: form-data; name="file"; filename="paused.csv"\r\n\r\n'
        )
        piece = b"".join(EVENTS.pieces(300, 0))
        for _ in range(_SENT_BYTES // len(piece)):
            writer.write(piece)
            await writer.drain()
        await asyncio.Event().wait()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
