"""What a container uses, from the files of its control group: at once, where the engine answers once a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_ROOT: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a container uses at one moment.

    :param group_bytes: what its control group counts, kernel buffers and cache of files included: this is limited.
    :param stats_bytes: what `docker stats` shows: without the cache of files that the kernel can drop at once.
    :param rss_bytes: of its processes.
    :param cpu_nanoseconds: since its start.
    """

    group_bytes: int
    stats_bytes: int
    rss_bytes: int
    cpu_nanoseconds: int


@dataclass(frozen=True, slots=True)
class Group:
    """The control group of a container.

    :param memory: the folder with what its memory is. :param cpu: the same of CPU; with version 2 it is one folder.
    """

    memory: Path
    cpu: Path

    @classmethod
    def of(cls, pid: int, *, root: Path = _ROOT, proc: Path = Path("/proc")) -> Self | None:
        """That of a process; `None` where the engine runs on another kernel than we do, as on a Mac.

        :param pid: as the engine says.
        """
        folders: dict[str, Path] = {}
        try:
            for line in (proc / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines():
                _, controllers, path = line.split(":", 2)
                for name in controllers.split(","):
                    folders[name] = root / name / path.lstrip("/")
        except OSError:
            return None
        memory, cpu = ("memory", "cpuacct") if "memory" in folders else ("", "")
        group = cls(folders[memory], folders[cpu])
        try:
            group.usage()
        except OSError:
            return None
        return group

    def usage(self, *, proc: Path = Path("/proc")) -> Usage:
        """Now.

        :raises OSError: the container has ended.
        """
        stat = _numbers(self.memory / "memory.stat")
        if (self.memory / "memory.current").exists():
            used, cache = _number(self.memory / "memory.current"), stat["inactive_file"]
            cpu = 1000 * _numbers(self.cpu / "cpu.stat")["usage_usec"]
        else:
            used, cache = _number(self.memory / "memory.usage_in_bytes"), stat["total_inactive_file"]
            cpu = _number(self.cpu / "cpuacct.usage")
        pids = (self.memory / "cgroup.procs").read_text(encoding="ascii").split()
        return Usage(used, used - cache, sum(_rss(proc / pid) for pid in pids), cpu)


def _number(file: Path) -> int:
    return int(file.read_text(encoding="ascii"))


def _numbers(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in file.read_text(encoding="ascii").splitlines())
    return {name: int(value) for name, value in pairs}


def _rss(process: Path) -> int:
    """The resident memory of a process; none when it has ended."""
    try:
        lines = (process / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)
