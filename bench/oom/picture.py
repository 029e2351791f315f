"""The picture of memory over time."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from matplotlib.figure import Figure as Drawing

from bench.oom.watch import Watch

_MIB: Final = 1024 * 1024


def draw(watch: Watch, *, limit_bytes: int, title: str, file: Path) -> None:
    """Draw what a container used, with its limit and the stages marked, as PNG."""
    drawing = Drawing(figsize=(8.0, 5.5), layout="constrained")
    memory, cpu = drawing.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    seconds = [sample.seconds for sample in watch.samples]
    memory.plot(seconds, [s.usage.group_bytes / _MIB for s in watch.samples], label="control group (limited)")
    memory.plot(seconds, [s.usage.stats_bytes / _MIB for s in watch.samples], label="docker stats", linewidth=1)
    memory.plot(seconds, [s.usage.rss_bytes / _MIB for s in watch.samples], label="RSS of the process", linewidth=1)
    limit = limit_bytes / _MIB
    memory.axhline(limit, color="red", linestyle="--", label=f"limit: {limit:.0f} MB")
    memory.set(ylim=(0, limit * 1.1), ylabel="MB", title=title)
    cpu.plot(seconds, [sample.cores for sample in watch.samples], color="gray")
    cpu.set(ylim=(0, None), ylabel="cores", xlabel="seconds")
    for at, label in watch.marks:
        for axes in (memory, cpu):
            axes.axvline(at, color="black", linewidth=0.8, linestyle=":")
        # Upwards: the first stages of a small file lie close together.
        memory.annotate(
            label, (at, limit * 0.78), xytext=(3, 0), textcoords="offset points", fontsize=8, rotation=90, va="bottom"
        )
    memory.legend(loc="lower center", ncols=4, fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Without a date inside, so that the same figures give the same file.
    drawing.savefig(file, dpi=120, metadata={"Software": None})
