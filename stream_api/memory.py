"""Memory as a formula, checked at start against the limit that the process runs under."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stream_api.config import MIB, Settings
from stream_api.load.pipeline import Sizes
from stream_api.upload.pipeline import memory_bytes as upload_memory_bytes
from stream_api.webhooks.sender import memory_bytes as webhook_memory_bytes

#: The interpreter and the imported libraries, the pools of connections and the event loop. Measured: 86 MB of an idle
#: process are its own; beside them it shows 54 MB of files, which the kernel can drop.
BASE_BYTES = 100 * MIB
#: What the kernel may hold of a download that waits for us: the usual limit of `net.ipv4.tcp_rmem`.
_DOWNLOAD_SOCKET_BYTES = 6 * MIB
#: Freed memory that the allocators keep, per thread that parses and encodes.
_ARENA_BYTES = 16 * MIB
#: Share of the limit that the formula may fill: the rest is for what the kernel charges beside (page tables, TLS).
_USABLE = 0.95


class MemoryLimitTooLow(Exception):
    """The settings need more memory than the process may have; the message says which and how much."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """The terms of the formula, in bytes."""

    base: int
    uploads: int
    loads: int
    threads: int
    webhooks: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.base + self.uploads + self.loads + self.threads + self.webhooks


def memory_need(settings: Settings, *, api: bool, worker: bool) -> MemoryNeed:
    """What a process with these roles needs at most."""
    per_load = Sizes.of(settings, settings.segment_bytes).memory_bytes(settings.lanes) + _DOWNLOAD_SOCKET_BYTES
    return MemoryNeed(
        base=BASE_BYTES,
        uploads=upload_memory_bytes(settings) if api else 0,
        loads=settings.load_concurrency * per_load if worker else 0,
        threads=settings.worker_threads * _ARENA_BYTES if worker else 0,
        webhooks=webhook_memory_bytes(settings) if worker else 0,
    )


def check_memory(settings: Settings, *, api: bool, worker: bool) -> MemoryNeed:
    """Compare the formula with the limit, if there is one.

    :raises MemoryLimitTooLow: naming the largest terms and the settings behind them.
    """
    need = memory_need(settings, api=api, worker=worker)
    limit = settings.memory_limit_bytes or cgroup_limit()
    if limit is not None and need.total > limit * _USABLE:
        terms = ", ".join(
            f"{name} {value / MIB:.0f} MiB"
            for name, value in (
                ("the process itself", need.base),
                (
                    (
                        "uploads (STREAM_API_UPLOAD_BUDGET_BYTES, STREAM_API_MAX_CONNECTIONS, "
                        "STREAM_API_SOCKET_RECEIVE_BUFFER_BYTES)"
                    ),
                    need.uploads,
                ),
                ("loads (STREAM_API_LOAD_CONCURRENCY, STREAM_API_LANES, STREAM_API_BATCH_BYTES)", need.loads),
                ("threads (STREAM_API_WORKER_THREADS)", need.threads),
                ("webhooks (STREAM_API_WEBHOOK_CONCURRENCY)", need.webhooks),
            )
            if value
        )
        message = (
            f"These settings can need {need.total / MIB:.0f} MiB and the limit is {limit / MIB:.0f} MiB, of which "
            f"{_USABLE:.0%} may be planned: {terms}. Lower one of them or raise the limit."
        )
        raise MemoryLimitTooLow(message)
    return need


def cgroup_limit(root: Path = Path("/sys/fs/cgroup"), of: Path = Path("/proc/self/cgroup")) -> int | None:
    """The memory limit of the process's control group, v1 or v2, in bytes; `None` where there is none."""
    try:
        lines = of.read_text().splitlines()
    except OSError:
        return None  # not Linux
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside a container the path of the host may not exist: the root of the mount is then the container's group.
        group = base / path.lstrip("/")
        folders = [group, *group.parents] if group.is_dir() else [base]
        limits += [limit for folder in folders if (limit := _read_limit(folder / name)) is not None]
    return min(limits, default=None)


def _read_limit(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    # v1 says "no limit" by a number near 2**63, rounded down to pages.
    return int(text) if text.isdecimal() and int(text) < 2**60 else None
