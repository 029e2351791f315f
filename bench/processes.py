"""What the kernel knows of processes: memory over time, the processor's time by process and by thread. Linux only."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

#: Samples each second.
RATE: Final = 10
_TICKS: Final = os.sysconf("SC_CLK_TCK")
#: Of /proc/PID/status: all that is resident, and what of it is anonymous memory, files and shared memory.
_STATUS: Final = {"VmRSS:": "rss", "RssAnon:": "anon", "RssFile:": "file", "RssShmem:": "shared"}
#: Of a control group's memory.stat, by the names of version 2 and of version 1.
_GROUP: Final = {"anon": "anon", "file": "file", "sock": "sock", "total_rss": "anon", "total_cache": "file"}


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory at one moment, in bytes.

    :param at: by `time.monotonic`.
    :param process: `rss`, and of it `anon`, `file` and `shared`.
    :param group: `total`, and of it `anon`, `file` and `sock`, as the control group counts them (version 1 has `sock`
        beside `total`); empty without one.
    """

    at: float
    process: dict[str, int]
    group: dict[str, int] = field(default_factory=dict)

    @property
    def rss(self) -> int:
        """All that is resident."""
        return self.process.get("rss", 0)


class Sampler:
    """Looks at a process `RATE` times a second, from a thread of its own, while its body runs.

    :param pid: of the process. :param group: folder of its control group.
    """

    def __init__(self, pid: int, group: Path | None = None) -> None:
        self.samples: Final[list[Sample]] = []
        self._pid, self._group = pid, group
        self._ended: Final = threading.Event()
        self._thread: Final = threading.Thread(target=self._run, name="sampler", daemon=True)

    def peak(self, since: float = 0.0, until: float = float("inf")) -> int:
        """The greatest resident memory of a time, in bytes; 0 where nothing was seen."""
        return max((each.rss for each in self.samples if since <= each.at <= until), default=0)

    def heaviest_group(self) -> dict[str, int]:
        """The control group's figures when they were greatest together."""
        return max((each.group for each in self.samples), key=lambda group: group.get("total", 0), default={})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due += 1 / RATE
            process = memory_of(self._pid)
            if process:
                self.samples.append(Sample(time.monotonic(), process, group_memory(self._group)))


def memory_of(pid: int) -> dict[str, int]:
    """The resident memory of a process in bytes, as in `Sample`; empty when it is gone."""
    found = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, rest = line.partition("\t")
            if name in _STATUS:
                found[_STATUS[name]] = int(rest.split()[0]) * 1024
    return found


def group_memory(folder: Path | None) -> dict[str, int]:
    """The memory of a control group in bytes, as in `Sample`; empty where there is none."""
    if folder is None:
        return {}
    found = {}
    for name in ("memory.current", "memory.usage_in_bytes"):
        with contextlib.suppress(OSError):
            found["total"] = int((folder / name).read_text(encoding="ascii"))
    with contextlib.suppress(OSError):
        for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines():
            name, value = line.split()
            if name in _GROUP:
                found[_GROUP[name]] = int(value)
    with contextlib.suppress(OSError):  # version 1 counts the buffers of sockets apart
        found["sock"] = int((folder / "memory.kmem.tcp.usage_in_bytes").read_text(encoding="ascii"))
    return found


@dataclass(frozen=True, slots=True)
class CpuTime:
    """The processor's time in seconds."""

    user: float = 0.0
    system: float = 0.0

    @property
    def total(self) -> float:
        """Both."""
        return self.user + self.system

    def __sub__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user - other.user, self.system - other.system)

    def __add__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user + other.user, self.system + other.system)


def cpu_of_one(pid: int) -> CpuTime:
    """What a process has used, without its children."""
    return _cpu_in(Path(f"/proc/{pid}/stat"), children=False)


def cpu_of(pid: int) -> CpuTime:
    """What a process has used, with its ended children and those that run, and theirs."""
    total = _cpu_in(Path(f"/proc/{pid}/stat"), children=True)
    for task in _folders(Path(f"/proc/{pid}/task")):
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text(encoding="ascii").split():
                total += cpu_of(int(child))
    return total


def cpu_of_threads(pid: int) -> dict[str, CpuTime]:
    """What the threads of a process have used, those of one name together. A thread that has ended is not there."""
    found: dict[str, CpuTime] = {}
    for task in _folders(Path(f"/proc/{pid}/task")):
        with contextlib.suppress(OSError):
            name = (task / "comm").read_text(encoding="utf-8", errors="replace").strip()
            found[name] = found.get(name, CpuTime()) + _cpu_in(task / "stat", children=False)
    return found


def _folders(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _cpu_in(file: Path, *, children: bool) -> CpuTime:
    try:
        # The name is in parentheses and may hold anything; the state and the rest follow the last one.
        fields = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return CpuTime()
    user, system, ended_user, ended_system = (int(each) / _TICKS for each in fields[11:15])
    return CpuTime(user + ended_user, system + ended_system) if children else CpuTime(user, system)
