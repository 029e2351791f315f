"""How much each part measures: the quick bench, the full one, and one that only shows that everything works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.tables import LONG, NARROW, WIDE, WIDE_JSON, Table
from stream_api.config import MIB


@dataclass(frozen=True)
class Sizes:
    """The quantities of one kind of run.

    :param times: how often what is short is measured; `few_times` for what takes long.
    :param event_rows: of the file of the main figures, about 200 bytes each.
    :param table_rows: of the other tables.
    :param lanes: numbers of lanes that are compared.
    :param upload_bytes: all that is uploaded in one measurement, whether by one client or by many.
    :param memory_bytes: sizes of the files whose memory is watched, the least first.
    :param digit_rows: of the file with one-digit columns, 80 bytes each.
    :param paused: clients that stop in the middle of an upload, `paused_seconds` of them watched.
    :param together: uploads at once, of `together_bytes` each, beside the load of `event_rows`.
    :param curve_rows: of the cost curve.
    :param delay_rows: of the loads with a distant database; `delays_ms` are of a round trip.
    :param workers: numbers of worker processes on one queue, with `worker_files` of `worker_rows` each.
    """

    name: str
    times: int
    few_times: int
    event_rows: int
    table_rows: tuple[tuple[Table, int], ...]
    lanes: tuple[int, ...]
    upload_bytes: int
    memory_bytes: tuple[int, ...]
    digit_rows: int
    paused: int
    paused_seconds: float
    together: int
    together_bytes: int
    curve_rows: tuple[int, ...]
    delay_rows: int
    delays_ms: tuple[float, ...]
    workers: tuple[int, ...]
    worker_files: int
    worker_rows: int


QUICK: Final = Sizes(
    name="quick",
    times=3,
    few_times=1,
    event_rows=500_000,
    table_rows=((WIDE, 100_000), (NARROW, 1_000_000), (LONG, 12_000), (WIDE_JSON, 30_000)),
    lanes=(1, 2, 4),
    upload_bytes=256 * MIB,
    memory_bytes=(256 * MIB, 1024 * MIB),
    digit_rows=1_000_000,
    paused=50,
    paused_seconds=5.0,
    together=50,
    together_bytes=20 * MIB,
    curve_rows=(10_000, 100_000, 1_000_000),
    delay_rows=200_000,
    delays_ms=(1, 5, 20),
    workers=(1, 2, 4),
    worker_files=8,
    worker_rows=100_000,
)
FULL: Final = Sizes(
    name="full",
    times=5,
    few_times=3,
    event_rows=1_000_000,
    table_rows=((WIDE, 300_000), (NARROW, 3_000_000), (LONG, 40_000), (WIDE_JSON, 100_000)),
    lanes=(1, 2, 4),
    upload_bytes=1024 * MIB,
    memory_bytes=(256 * MIB, 1024 * MIB, 4096 * MIB),
    digit_rows=4_000_000,
    paused=50,
    paused_seconds=8.0,
    together=50,
    together_bytes=20 * MIB,
    curve_rows=(10_000, 100_000, 1_000_000, 10_000_000),
    delay_rows=1_000_000,
    delays_ms=(1, 5, 20),
    workers=(1, 2, 4),
    worker_files=8,
    worker_rows=500_000,
)
#: A minute or two in all; its figures mean nothing.
SMOKE: Final = Sizes(
    name="smoke",
    times=2,
    few_times=1,
    event_rows=10_000,
    table_rows=((WIDE, 2_000), (NARROW, 10_000), (LONG, 500), (WIDE_JSON, 1_000)),
    lanes=(1, 2),
    upload_bytes=16 * MIB,
    memory_bytes=(1 * MIB, 4 * MIB),
    digit_rows=10_000,
    paused=5,
    paused_seconds=1.0,
    together=4,
    together_bytes=1 * MIB,
    curve_rows=(1_000, 10_000),
    delay_rows=5_000,
    delays_ms=(1, 5),
    workers=(1, 2),
    worker_files=3,
    worker_rows=5_000,
)
