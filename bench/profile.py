"""Where the time goes: the processor's time of a load by process and by thread, its stages, and a flame graph."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Final

from bench.flames import Stacks, count_stages, draw_flames, read_stacks
from bench.frame import Chapter, Figure
from bench.memory import LAUNCHER
from bench.processes import CpuTime, cpu_of, cpu_of_one, cpu_of_threads
from bench.runs import finish
from bench.sizes import Sizes
from bench.stand import File, Stand, say
from bench.tables import EVENTS
from stream_api.dev.server import spawn

TITLE: Final = "Where the time goes"
FLAMES: Final = "flames.svg"
#: Samples a second of py-spy.
_RATE: Final = 200
_ATTACH_SECONDS: Final = 20.0


class _NotAllowed(Exception):
    """py-spy may not look; the message is its own."""


async def measure(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    """Fill the chapter."""
    await stand.make_tables(EVENTS)
    file = await stand.files.of(EVENTS, sizes.event_rows)
    await _processes(stand, file, chapter)
    program = _find("py-spy")
    if program is None:
        chapter.skipped.append("py-spy is not installed (pip install 'stream-api[bench]'): no stages, no flame graph")
        return
    try:
        stacks = read_stacks(await _record(stand, file, program))
    except _NotAllowed as exc:
        chapter.skipped.append(f"stages and flame graph, for py-spy says: {exc}")
        return
    chapter.texts.append(_stages(stacks))
    flames = stand.folder / FLAMES
    drawn = draw_flames(stacks, f"A load of {file.rows:,} rows: what its worker's threads were at")
    await asyncio.to_thread(flames.write_text, drawn, encoding="utf-8")
    chapter.pictures.append(str(flames))


def _find(program: str) -> str | None:
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.exists() else shutil.which(program)


async def _processes(stand: Stand, file: File, chapter: Chapter) -> None:
    """One load, and what every process has used for it."""
    target = EVENTS.target(keyed=True)
    await stand.empty(target)
    async with stand.running(
        {"target_table": target}, program=LAUNCHER, options=["--watch", str(stand.folder)]
    ) as running:
        pids = {"stream-api": running.service.pid, **stand.pids}

        def look() -> dict[str, CpuTime]:
            # All the others are children of the bench.
            return {**{name: cpu_of(pid) for name, pid in pids.items()}, "the bench": cpu_of_one(os.getpid())}

        accepted = await running.client.upload(file.path)
        before, threads = look(), cpu_of_threads(running.service.pid)
        seconds = await finish(running, accepted, file.rows)
        used = {name: cpu - before[name] for name, cpu in look().items()}
        later = cpu_of_threads(running.service.pid)
    by_thread = {name: cpu - threads.get(name, CpuTime()) for name, cpu in later.items()}
    chapter.texts.append(
        f"The processor's time of one load of {file.rows:,} rows, which took {seconds:.2f} s "
        f"({os.cpu_count()} cores):\n\n" + _table("process", used, seconds)
    )
    chapter.texts.append("The threads of stream-api:\n\n" + _table("thread", by_thread, seconds))
    for name, cpu in used.items():
        chapter.figures.append(
            Figure(
                name=f"profile.{name.replace(' ', '_')}",
                title=f"The processor's time for a million rows: {name}",
                unit="s",
                values=[cpu.total / file.rows * 1e6],
                higher_is_better=False,
            )
        )


def _table(what: str, used: dict[str, CpuTime], seconds: float) -> str:
    lines = [f"| {what} | user | system | of one core |", "|---|---|---|---|"]
    for name, cpu in sorted(used.items(), key=lambda each: -each[1].total):
        if cpu.total:
            lines.append(f"| {name} | {cpu.user:.2f} s | {cpu.system:.2f} s | {cpu.total / seconds:.0%} |")
    return "\n".join(lines)


async def _record(stand: Stand, file: File, program: str) -> str:
    """Record a load with py-spy, in its raw form: the process that loads has not taken in the file.

    :raises _NotAllowed: where this machine does not let it look.
    """
    target, output, log = EVENTS.target(keyed=True), stand.folder / "stacks.txt", stand.folder / "py-spy.log"
    await stand.empty(target)
    settings = {"target_table": target}
    async with stand.running(settings, options=["--no-worker"]) as api, stand.running(settings) as worker:
        options = ["--format", "raw", "--rate", str(_RATE), "--threads", "--output", str(output)]
        recorder = spawn([program, "record", "--pid", str(worker.service.pid), *options], log=log)
        try:
            await _attached(log)
            accepted = await api.client.upload(file.path)
            await finish(api, accepted, file.rows)
        finally:
            recorder.send_signal(signal.SIGINT)
            await asyncio.to_thread(recorder.wait)
    say("  py-spy: recorded")
    return await asyncio.to_thread(output.read_text)


async def _attached(log: Path) -> None:
    """Wait until py-spy says that it samples.

    :raises _NotAllowed: when it says something else.
    """
    deadline = time.monotonic() + _ATTACH_SECONDS
    while "Sampling process" not in (said := await asyncio.to_thread(log.read_text)):
        if "Error" in said or time.monotonic() > deadline:
            raise _NotAllowed(said.strip()[-300:] or "nothing")
        await asyncio.sleep(0.1)


def _stages(stacks: Stacks) -> str:
    seen = count_stages(stacks)
    total = seen.total() or 1
    lines = [f"| {stage} | {count / total:.1%} |" for stage, count in seen.most_common()]
    return "\n".join(
        [
            f"Of {total} samples of threads at work ({_RATE} a second), by stage:",
            "",
            "| stage | share |",
            "|---|---|",
            *lines,
        ]
    )
