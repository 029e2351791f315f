"""Feeds encoded segments to lanes, each with a connection of its own: the last joint of the pipeline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import asyncpg

from stream_api.flow.channel import Channel
from stream_api.ledger.segments import SegmentFigures
from stream_api.load.model import Encoded
from stream_api.load.transacting import ended_with


@dataclass(frozen=True, slots=True)
class SegmentStream:
    """A segment on its way to a lane: the lane may start while its last batches are still being encoded.

    :param place: of this pipeline's segments, in the file's order and from 0.
    """

    number: int
    start: int
    first_line: int
    batches: Channel[Encoded]
    place: int = 0


async def dispatch(encoded: Channel[Encoded], segments: Channel[SegmentStream], *, segment_queue_bytes: int) -> None:
    """Cut the flow of batches into one stream for each segment, in order.

    A stream is closed when its segment is whole, and failed when the flow breaks: a lane can never take a truncated
    segment for a whole one.

    Memory: (lanes + streams queued in `segments` + 1) × `segment_queue_bytes`.
    """
    stream: SegmentStream | None = None
    place = 0
    try:
        async for batch in encoded:
            source = batch.span
            if stream is not None and stream.number != source.segment:
                stream.batches.close()
                stream = None
            if stream is None:
                queue = Channel[Encoded](f"segment-{source.segment}", max_items=64, max_bytes=segment_queue_bytes)
                stream = SegmentStream(source.segment, source.start, source.first_line, queue, place)
                place += 1
                await segments.send(stream, 0)
            await stream.batches.send(batch, batch.size_bytes)
            if source.ends_segment:
                stream.batches.close()
                stream = None
        if stream is not None:
            stream.batches.close()
    except BaseException as exc:
        if stream is not None:
            stream.batches.fail(exc)
        raise
    segments.close()


class Way(Protocol):
    """How one lane loads a segment."""

    async def load(self, stream: SegmentStream, /) -> SegmentFigures | None:
        """Load it and commit; `None` where it is loaded already.

        :raises RunLost: the run is no longer this worker's.
        :raises Failure: `too_many_rejects`, `constraint_violated` and the other errors of Postgres; those of the store.
        """


class Lane:
    """One connection that loads segments, one after another.

    :param connection: for this lane alone; of this upload and run (see `ledger.pool.connect_lane`).
    :param way: how, over that connection.
    :param committed: called after each commit with the figures of the segment.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        way: Way,
        committed: Callable[[SegmentFigures], Awaitable[None]],
    ) -> None:
        self._connection = connection
        self._way = way
        self._committed = committed

    async def run(self, segments: Channel[SegmentStream]) -> None:
        """Load segments until there are no more.

        :raises RunLost, Failure: see `Way.load`.
        """
        async for stream in segments:
            figures = await self._load(stream)
            if figures is not None:
                await self._committed(figures)

    async def _load(self, stream: SegmentStream) -> SegmentFigures | None:
        async with ended_with(self._connection):
            return await self._way.load(stream)
