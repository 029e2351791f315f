"""Cuts a file into parts of equal size, each with room from the budget taken before it is read.

Memory: one upload holds at most 1 filling + 1 queued + `parts_in_flight` parts, and all uploads of the process
together at most the budget. A part is filled into one `BytesIO` of the right size from the start, whose bytes become
the body of the request to S3 without a copy (CPython's `BytesIO.getvalue` shares a buffer that it fills exactly), and
which the next part is filled into once S3 has acknowledged it.
Beside the budget an upload holds a few chunks, in `BodyPartReader` and here, and the beginning of the file.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from stream_api.dialects.detection import Beginning, head_bytes
from stream_api.errors import Failure
from stream_api.flow.budget import ByteBudget, Lease
from stream_api.flow.channel import Channel
from stream_api.upload.body import CHUNK_BYTES, File
from stream_api.upload.buffers import Buffers
from stream_api.upload.client import ClientStream

#: What is read at once of the beginning of a file, so that it need not wait for bytes which may be long in coming.
_HEAD_CHUNK_BYTES: Final = 4 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """A part with its room.

    :param number: from 1.
    :param content: all that the buffer holds; of a part that is stored it is somebody else's.
    :param lease: to be given back when the content is no longer used.
    """

    number: int
    content: io.BytesIO
    lease: Lease

    @property
    def size_bytes(self) -> int:
        """Of the content."""
        with self.content.getbuffer() as view:
            return view.nbytes


class PartCutter:
    """Reads one file into parts.

    :param buffers: of the size of a part; who uses up a part gives them back.
    :param channel: takes the parts of a file of more than one.
    :param max_file_bytes: bound for the file.
    """

    def __init__(
        self,
        stream: ClientStream,
        budget: ByteBudget,
        buffers: Buffers,
        channel: Channel[Part],
        *,
        max_file_bytes: int,
        admission_timeout_seconds: float,
    ) -> None:
        self._stream: Final = stream
        self._budget: Final = budget
        self._channel: Final = channel
        self._buffers: Final = buffers
        self._part_bytes: Final = buffers.size_bytes
        self._max_file_bytes: Final = max_file_bytes
        self._admission_timeout_seconds: Final = admission_timeout_seconds
        self._sha256: Final = hashlib.sha256()
        #: What was read beyond the part that it was read for: less than two chunks.
        self._carry = b""
        self._ended = False
        #: Room of the part that is being filled, or of the only part.
        self._lease: Lease | None = None
        #: Room of parts that are sent into the channel; a receiver takes out that of its part.
        self.queued: Final[set[Lease]] = set()
        self.size_bytes = 0
        #: How the file begins, once that is known.
        self.beginning: Beginning | None = None

    @property
    def holds_room(self) -> bool:
        """Room of the budget waits for what this client sends."""
        return self._lease is not None

    @property
    def sha256(self) -> str:
        """Of all that was read, in hexadecimal."""
        return self._sha256.hexdigest()

    async def cut(self, file: File, *, begun: Callable[[], Awaitable[None]]) -> Part | None:
        """Read the file to its end.

        :param begun: called once `beginning` is known, unless the file ends with it; what it raises ends the cutting.
        :returns: the only part of a file that fits into one, its room still ours; otherwise `None`, and all parts
            have gone through the channel.
        :raises Failure: `file_empty`, `file_too_large`, `server_busy`, or what is wrong with the body.
        """
        number = 1
        while True:
            self._lease = await self._admit()
            content = await self._fill(file, begun)
            if content is None:
                raise Failure("file_empty", "The file is empty.")
            if number == 1:
                # Whether it is the only one must be known before it goes anywhere.
                await self._peek(file)
                if not self._carry:
                    return Part(number, content, self._lease)
            part, self._lease = Part(number, content, self._lease), None
            self.queued.add(part.lease)
            await self._channel.send(part, part.size_bytes)
            # Where this waits for the client, nothing may hold on to what S3 may have acknowledged.
            del part, content
            # Without room for it: this chunk tells whether room is needed.
            await self._peek(file)
            if not self._carry:
                return None
            number += 1

    def release(self) -> None:
        """Give back the room of everything that no receiver has taken. Idempotent."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        while self.queued:
            self.queued.pop().release()

    async def _admit(self) -> Lease:
        try:
            async with asyncio.timeout(self._admission_timeout_seconds):
                return await self._budget.acquire(self._part_bytes)
        except TimeoutError as exc:
            raise Failure(
                "server_busy",
                f"There was no room for this upload for {self._admission_timeout_seconds:g} seconds; try again later.",
                retryAfterSeconds=max(1, round(self._admission_timeout_seconds)),
            ) from exc

    async def _fill(self, file: File, begun: Callable[[], Awaitable[None]]) -> io.BytesIO | None:
        """The content of the next part; `None` when the file has nothing more."""
        left = self._stream.most_bytes_left
        buffer = self._buffers.take(self._part_bytes if left is None else min(self._part_bytes, left + 2 * CHUNK_BYTES))
        size = 0
        while size < self._part_bytes:
            await self._peek(file)
            if not self._carry:
                break
            room = self._part_bytes - size
            size += buffer.write(self._carry[:room])
            self._carry = self._carry[room:]
            if self.beginning is None and self._begins(buffer, size):
                await begun()
        if self.beginning is None:
            self.beginning = Beginning.of(_copied(buffer, size), whole=True)
        buffer.truncate(size)
        return buffer if size else None

    def _begins(self, buffer: io.BytesIO, size: int) -> bool:
        """Whether enough of the file has come, which lies in the buffer of its first part."""
        if size < head_bytes(b"") or size < (wanted := head_bytes(_copied(buffer, 4))):
            return False
        self.beginning = Beginning.of(_copied(buffer, wanted), whole=False)
        return True

    async def _peek(self, file: File) -> None:
        """See to it that `_carry` holds something, unless the file has ended."""
        if self._carry or self._ended:
            return
        self._carry = await file.read(_HEAD_CHUNK_BYTES if self.beginning is None else CHUNK_BYTES)
        self._ended = not self._carry
        self._sha256.update(self._carry)
        self.size_bytes += len(self._carry)
        if self.size_bytes > self._max_file_bytes:
            raise too_large(self._max_file_bytes)


def _copied(buffer: io.BytesIO, size: int) -> bytes:
    """The first bytes, without the copy of everything that `getvalue` would make of a buffer that is not full."""
    with buffer.getbuffer() as view:
        return bytes(view[:size])


def too_large(max_file_bytes: int) -> Failure:
    """The failure of a file over the limit."""
    return Failure(
        "file_too_large",
        f"The file is larger than {max_file_bytes} bytes, which is 10,000 parts of STREAM_API_PART_BYTES.",
        limitBytes=max_file_bytes,
    )
