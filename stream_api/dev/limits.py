"""A hard memory limit for one process: cgroup v1, cgroup v2 or systemd-run, whichever this machine allows."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from stream_api.dev.server import spawn

_ROOT: Final = Path("/sys/fs/cgroup")


class _NotHere(Exception):
    """A way of limiting memory does not work on this machine; the message says why."""


@dataclass
class MemoryLimit:
    """What to start a process with, so that it has the limit.

    :param limit_bytes: None when no way was found.
    :param description: which way it is, or why there is none.
    :param cgroups: for `spawn`.
    :param prefix: words to put before the command.
    """

    limit_bytes: int | None
    description: str
    cgroups: list[Path] = field(default_factory=list)
    prefix: list[str] = field(default_factory=list)
    _folder: Path | None = None

    def group(self, pid: int) -> Path | None:
        """The folder of the control group, with its figures.

        :param pid: of a process in it, which must still be there.
        """
        folder = self._folder
        if folder is None and self.prefix:  # systemd made a group of its own.
            with contextlib.suppress(OSError):
                folder = _ROOT / _groups(pid)[""].lstrip("/")
        return folder

    def peak_bytes(self, pid: int) -> int | None:
        """The most that the process and its kernel buffers have used, as the control group counts it.

        :param pid: of the process, which must still be there.
        """
        folder = self.group(pid)
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            with contextlib.suppress(OSError, TypeError, ValueError):
                if folder is not None:
                    return int((folder / name).read_text(encoding="ascii"))
        return None

    def remove(self) -> None:
        """Remove the control group; its process must have ended."""
        if self._folder is None:
            return
        for _ in range(50):
            try:
                self._folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:  # Busy: the kernel has not yet taken the last process out.
                time.sleep(0.02)
            else:
                return


@contextlib.contextmanager
def memory_limit(limit_bytes: int) -> Iterator[MemoryLimit]:
    """The first way that works, tried out with a process that does nothing; removed at the end."""
    reasons = []
    for way in (_cgroup_v1, _cgroup_v2, _systemd_run):
        try:
            limit = way(limit_bytes)
        except _NotHere as exc:
            reasons.append(str(exc))
            continue
        except OSError as exc:
            reasons.append(f"{way.__name__.strip('_').replace('_', ' ')}: {exc.strerror}")
            continue
        if _works(limit):
            try:
                yield limit
            finally:
                limit.remove()
            return
        reasons.append(f"{limit.description}: a process could not be started in it")
        limit.remove()
    yield MemoryLimit(None, f"none ({'; '.join(reasons)})")


def _works(limit: MemoryLimit) -> bool:
    nothing = spawn([*limit.prefix, "/bin/sh", "-c", ":"], cgroups=limit.cgroups, log=Path(os.devnull))
    try:
        return nothing.wait(20) == 0
    except subprocess.TimeoutExpired:
        nothing.kill()
        nothing.wait()
        return False


def _groups(pid: int | str = "self") -> dict[str, str]:
    """Controllers ("" for version 2) and the group of a process: `/proc/PID/cgroup`."""
    groups = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _cgroup_v1(limit_bytes: int) -> MemoryLimit:
    base = _ROOT / "memory"
    if not (base / "memory.limit_in_bytes").exists():
        msg = "cgroup v1: no memory controller"
        raise _NotHere(msg)
    own = base / _groups().get("memory", "/").lstrip("/")
    # In a container the path is often that of the host, and the mount begins at our own group.
    folder = (own if own.is_dir() else base) / f"stream-api-{os.getpid()}"
    folder.mkdir()
    limit = MemoryLimit(limit_bytes, "cgroup v1", [folder / "cgroup.procs"], _folder=folder)
    try:
        (folder / "memory.limit_in_bytes").write_text(str(limit_bytes), encoding="ascii")
        # Memory and swap together, where swap is counted: swapping out would soften the limit.
        with contextlib.suppress(FileNotFoundError):
            (folder / "memory.memsw.limit_in_bytes").write_text(str(limit_bytes), encoding="ascii")
    except OSError:
        limit.remove()
        raise
    return limit


def _cgroup_v2(limit_bytes: int) -> MemoryLimit:
    if not (_ROOT / "cgroup.controllers").exists():
        msg = "cgroup v2: not mounted"
        raise _NotHere(msg)
    own = _ROOT / _groups().get("", "/").lstrip("/")
    problem = "no group delegates its memory controller"
    # A group that has processes may not hand its controllers down, so one further up may have to do.
    for parent in [own, *own.parents]:
        if not parent.is_relative_to(_ROOT):
            break
        try:
            delegated = parent / "cgroup.subtree_control"
            if "memory" not in delegated.read_text(encoding="ascii").split():
                delegated.write_text("+memory", encoding="ascii")
            folder = parent / f"stream-api-{os.getpid()}"
            folder.mkdir()
        except OSError as exc:
            problem = f"{parent}: {exc.strerror}"
            continue
        limit = MemoryLimit(limit_bytes, "cgroup v2", [folder / "cgroup.procs"], _folder=folder)
        try:
            (folder / "memory.max").write_text(str(limit_bytes), encoding="ascii")
            with contextlib.suppress(FileNotFoundError):
                (folder / "memory.swap.max").write_text("0", encoding="ascii")
        except OSError as exc:
            problem = f"{folder}: {exc.strerror}"
            limit.remove()
            continue
        if _works(limit):
            return limit
        problem = f"{folder}: no process could be moved there"
        limit.remove()
    msg = f"cgroup v2: {problem}"
    raise _NotHere(msg)


def _systemd_run(limit_bytes: int) -> MemoryLimit:
    program = shutil.which("systemd-run")
    if program is None or not Path("/run/systemd/system").exists():
        msg = "systemd-run: systemd does not run here"
        raise _NotHere(msg)
    prefix = [program, "--scope", "--quiet", f"--property=MemoryMax={limit_bytes}", "--property=MemorySwapMax=0"]
    if os.geteuid() != 0:
        prefix.insert(1, "--user")
    return MemoryLimit(limit_bytes, "systemd-run", prefix=[*prefix, "--"])
