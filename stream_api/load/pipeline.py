"""Stage 2: the way of one load's data, from the object to the table.

    open_range ─► read ─► [batches] ─► parse ─► [rows] ─► validate ─► [encoded] ─► dispatch ─► [segments] ─► lanes

Each channel is bounded in bytes. A slow Postgres fills the last, then the one before, and in the end the socket to
S3 is no longer read. Whatever fails first ends all: a stage that ends early fails its channel, never closes it.

Memory of one load (see `memory_bytes`): for each channel what it holds, one item in the hands of the stage before it
and one in those of the stage after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from stream_api.config import Settings
from stream_api.datasets.plan import Plan
from stream_api.dialects.compression import DECODER_BYTES
from stream_api.flow.channel import Channel, ChannelStats
from stream_api.load.cutter import Cutter
from stream_api.load.feeder import Lane, SegmentStream, dispatch
from stream_api.load.header import Limits
from stream_api.load.judge import REMEMBERED_BYTES
from stream_api.load.model import Batch, Encoded, Rows
from stream_api.load.parser import Parser
from stream_api.load.reader import CHUNK_BYTES, Hole, OpenRange, RunInThread, read
from stream_api.load.sieve import Sieve

Item = TypeVar("Item")
Made = TypeVar("Made")

#: A batch has no more records than one for so many of its bytes, nor more fields than one for so many: what tells where
#: a record is weighs some 35 bytes, and a number of one digit 14, however short they are. Of shorter ones batches are
#: smaller; longer ones, which are nearly all there are, notice nothing.
RECORD_BYTES: Final = 20
FIELD_BYTES: Final = 4
#: What parsed rows weigh at most against `batch`, with their text.
ROWS_EXPANSION: Final = 4
#: The same for encoded ones: numerics of one digit.
ENCODED_EXPANSION: Final = 4


class Validator(Protocol):
    """Types and encodes the rows of a batch."""

    async def validate(self, rows: Rows, /) -> Encoded:
        """Encode `rows`, and reject those that the table would not take."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bounds of one load, in bytes.

    :param batch: about what one batch of records weighs; a record longer than it makes a longer batch.
    :param record: the longest record, or header.
    :param segment_queue: what is encoded and waits, for each segment.
    """

    segment: int
    batch: int
    record: int
    segment_queue: int

    @classmethod
    def of(cls, settings: Settings, segment_bytes: int) -> Sizes:
        """From the settings, and the size of segments that the upload was stored with."""
        return cls(
            segment=segment_bytes,
            batch=min(settings.batch_bytes, segment_bytes),
            record=max(settings.max_record_bytes, settings.max_header_bytes),
            segment_queue=2 * settings.batch_bytes,
        )

    def cutter(self, plan: Plan, limits: Limits, start: int, line: int) -> Cutter:
        """A cutter for bytes that begin at this byte and on this line.

        Where records are short, a batch has fewer of them: neither what is made of them nor what the dataset adds to
        them weighs much more than the records of a full batch.
        """
        least = max(RECORD_BYTES, FIELD_BYTES * len(plan.fields), plan.added_bytes)
        return Cutter(
            plan.dialect,
            segment_bytes=self.segment,
            batch_bytes=self.batch,
            limits=limits,
            named=plan.header,
            batch_records=max(1, self.batch // least),
            start=start,
            line=line,
        )

    def memory_bytes(self, lanes: int) -> int:
        """The most that one load holds.

        Decoders: that of the load, and one for a segment that is read again, each its window and two chunks; cutter:
        what is held, its copy, its index and its shadow; batches: 1 queued, 1 on either side; rows: the same, each with
        its strings; encoded: 1 + 1; segments: lanes + 1 queued + 1 being dispatched; each lane: the rejections of its
        segment while they are joined, or a segment that it sifts or merges; what the judge remembers.
        """
        sifting = Sieve.memory_bytes(segment=self.segment, batch=self.batch, record=self.record)
        cutting = 2 * (DECODER_BYTES + 2 * CHUNK_BYTES) + 4 * (self.batch + self.record)
        encoding = ENCODED_EXPANSION * self.batch
        batches, rows, encoded = 3 * self.batch, 3 * ROWS_EXPANSION * self.batch, 2 * encoding
        segments = (lanes + 2) * (max(self.segment_queue, encoding) + encoding)
        return cutting + batches + rows + encoded + segments + lanes * sifting + REMEMBERED_BYTES


class Pipeline:
    """The stages of one load and the channels between them."""

    def __init__(
        self,
        *,
        sizes: Sizes,
        make_cutter: Callable[[int, int], Cutter],
        parser: Parser,
        validator: Validator,
        lanes: Sequence[Lane],
        run_in_thread: RunInThread,
    ) -> None:
        self._sizes = sizes
        self._make_cutter = make_cutter
        self._parser = parser
        self._validator = validator
        self._lanes = lanes
        self._run_in_thread = run_in_thread
        # Two batches wait at each joint: one would let a stage run dry whenever its neighbour is late.
        self._batches = Channel[Batch]("batches", max_items=4, max_bytes=2 * sizes.batch)
        self._rows = Channel[Rows]("rows", max_items=2, max_bytes=4 * sizes.batch)
        self._encoded = Channel[Encoded]("encoded", max_items=2, max_bytes=2 * sizes.batch)
        self._segments = Channel[SegmentStream]("segments", max_items=1, max_bytes=1)

    @property
    def stats(self) -> tuple[ChannelStats, ...]:
        """The channels, in the order of the flow."""
        return (self._batches.stats, self._rows.stats, self._encoded.stats, self._segments.stats)

    async def run(self, holes: Sequence[Hole], open_range: OpenRange) -> None:
        """Load what the holes hold.

        :raises ExceptionGroup: of what the stages raised; see `flow.causes.first_cause`.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(
                _stage(read(holes, open_range, self._make_cutter, self._batches, self._run_in_thread), self._batches),
                name="read",
            )
            group.create_task(_stage(self._transform(self._batches, self._parse, self._rows), self._rows), name="parse")
            group.create_task(
                _stage(self._transform(self._rows, self._validator.validate, self._encoded), self._encoded),
                name="validate",
            )
            group.create_task(
                _stage(
                    dispatch(self._encoded, self._segments, segment_queue_bytes=self._sizes.segment_queue),
                    self._segments,
                ),
                name="dispatch",
            )
            for number, lane in enumerate(self._lanes):
                group.create_task(lane.run(self._segments), name=f"lane-{number}")

    async def _parse(self, batch: Batch) -> Rows:
        return await self._run_in_thread(self._parser.parse, batch)

    @staticmethod
    async def _transform(source: Channel[Item], make: Callable[[Item], Awaitable[Made]], sink: Channel[Made]) -> None:
        async for item in source:
            made = await make(item)
            del item  # what a stage has used up it does not hold while it waits
            await sink.send(made, made.size_bytes)  # type: ignore[attr-defined]
            del made


async def _stage(work: Awaitable[None], sink: Channel[Item]) -> None:
    """Run a stage and end the channel after it: closed when the work is done, failed by whatever ends it otherwise."""
    try:
        await work
    except BaseException as exc:
        sink.fail(exc)
        raise
    sink.close()
