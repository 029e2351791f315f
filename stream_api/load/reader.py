"""Reads the parts of an object that are not loaded yet, and cuts them into batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from stream_api.flow.channel import Channel
from stream_api.ledger.segments import CommittedSegment
from stream_api.load.cutter import Cutter
from stream_api.load.model import Batch

Result = TypeVar("Result")

#: Bytes read from S3 at a time, and decoded at a time.
CHUNK_BYTES: Final = 256 * 1024
#: Where data ends of which that is not known before it is read.
UNKNOWN_END: Final = 2**63 - 1


class RunInThread(Protocol):
    """Runs a function in the process's pool of threads."""

    def __call__(self, function: Callable[..., Result], /, *args: object) -> Awaitable[Result]:
        """The function's result."""


class OpenRange(Protocol):
    """Opens the bytes of the data from `start` up to `end`, in pieces; a broken download goes on by itself."""

    def __call__(self, start: int, end: int, /) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Pieces in order; leaving early ends the download."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Bytes of the decoded file that no ledger row covers: from `start`, where a record begins, up to `end`.

    `UNKNOWN_END` is the end of the file, wherever that is; then there may be nothing at all.

    :param line: line of the file at `start`, from 1.
    """

    start: int
    end: int
    line: int


def find_holes(committed: Sequence[CommittedSegment], end: int) -> list[Hole]:
    """What is left to load of a file of which these segments are committed, in order.

    :param end: size of the decoded file, or `UNKNOWN_END`.
    """
    holes: list[Hole] = []
    position, line = 0, 1
    for segment in sorted(committed, key=lambda segment: segment.start):
        if segment.start > position:
            holes.append(Hole(position, segment.start, line))
        position, line = segment.end, segment.first_line + segment.lines
    if position < end:
        holes.append(Hole(position, end, line))
    return holes


async def read(
    holes: Sequence[Hole],
    open_range: OpenRange,
    make_cutter: Callable[[int, int], Cutter],
    batches: Channel[Batch],
    run_in_thread: RunInThread,
) -> None:
    """Read each hole by a ranged request of its own, cut it, and send its batches.

    Memory: that of the cutter, see there.

    :param make_cutter: makes one for bytes that begin at (offset, line).
    :raises Failure: what is wrong with the header, and those of `open_range`.
    """
    for hole in holes:
        cutter = make_cutter(hole.start, hole.line)
        async with open_range(hole.start, hole.end) as pieces:
            async for piece in pieces:
                if cutter.add(piece):
                    await _send(await run_in_thread(cutter.cut), batches)
        await _send(await run_in_thread(_finish, cutter), batches)


async def read_again(
    start: int,
    end: int,
    line: int,
    *,
    open_range: OpenRange,
    make_cutter: Callable[[int, int], Cutter],
    run_in_thread: RunInThread,
) -> list[Batch]:
    """The batches of a segment, which is [start, end) of the decoded file and begins on this line, as `read` cuts them.

    :raises Failure: those of `open_range`.
    """
    cutter, batches = make_cutter(start, line), list[Batch]()
    async with open_range(start, end) as pieces:
        async for piece in pieces:
            if cutter.add(piece):
                batches += await run_in_thread(cutter.cut)
    return batches + await run_in_thread(_finish, cutter)


def _finish(cutter: Cutter) -> list[Batch]:
    return cutter.cut(final=True)


async def _send(cut: list[Batch], batches: Channel[Batch]) -> None:
    for batch in cut:
        await batches.send(batch, batch.size_bytes)
