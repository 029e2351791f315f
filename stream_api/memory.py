"""Memory as a formula, and settings that fit into the limit that the process runs under."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stream_api.config import KIB, MIB, Settings
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
#: What is given up under a low limit, in this order, until the formula fits: first what only many clients at once would
#: miss, then speed. Nothing here decides about what becomes of a row, or how large a file may be.
_ECONOMIES: Final = (
    ("upload_budget_bytes", 48 * MIB),
    ("max_connections", 60),
    ("upload_budget_bytes", 24 * MIB),
    ("max_connections", 30),
    ("webhook_concurrency", 4),
    ("worker_threads", 1),
    ("lanes", 1),
    ("batch_bytes", 256 * KIB),
    ("upload_budget_bytes", 8 * MIB),
    ("max_connections", 16),
    ("webhook_concurrency", 2),
    ("max_connections", 8),
)


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


def fit(settings: Settings, *, api: bool, worker: bool) -> Settings:
    """The settings, less of what nobody has set where the limit is too low for the defaults.

    :raises MemoryLimitTooLow: naming the largest terms and the settings behind them, when nothing more can be saved.
    """
    limit = settings.memory_limit_bytes or cgroup_limit()
    if limit is None:
        return settings
    fitted, need = settings, memory_need(settings, api=api, worker=worker)
    for name, value in _ECONOMIES:
        if need.total <= limit * _USABLE:
            break
        # An upload needs room for one part.
        least = settings.part_bytes if name == "upload_budget_bytes" else 0
        if name in settings.model_fields_set or max(value, least) >= getattr(fitted, name):
            continue
        less = fitted.model_copy(update={name: max(value, least)})
        if (lower := memory_need(less, api=api, worker=worker)).total < need.total:
            fitted, need = less, lower
    if need.total > limit * _USABLE:
        raise MemoryLimitTooLow(_too_low(need, limit))
    return fitted


def _too_low(need: MemoryNeed, limit: int) -> str:
    terms = (
        ("the process itself", (), need.base),
        ("uploads", ("UPLOAD_BUDGET_BYTES", "MAX_CONNECTIONS", "SOCKET_RECEIVE_BUFFER_BYTES"), need.uploads),
        ("loads", ("LOAD_CONCURRENCY", "LANES", "BATCH_BYTES", "MAX_RECORD_BYTES"), need.loads),
        ("threads", ("WORKER_THREADS",), need.threads),
        ("webhooks", ("WEBHOOK_CONCURRENCY",), need.webhooks),
    )
    parts = []
    for what, names, value in terms:
        if value:
            settings = ", ".join(f"STREAM_API_{name}" for name in names)
            parts.append(f"{what}{f' ({settings})' if settings else ''} {value / MIB:.0f} MiB")
    return (
        f"This needs {need.total / MIB:.0f} MiB at most, with as little as can be of what is not set, and the limit is "
        f"{limit / MIB:.0f} MiB, of which {_USABLE:.0%} may be planned: {', '.join(parts)}. "
        "Raise the limit, or lower one of these settings."
    )


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
