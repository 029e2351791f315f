"""Rejections in their packed form: what batches carry, ledger rows hold, and objects under `rejects/` consist of.

A rejection is a frame: the length of what follows, as 4 bytes, big-endian, and a MessagePack array of line, offset,
column, code, reason and record. Frames are compressed by zlib. Compressed streams are joined by writing one behind the
other, so that a segment's rejections are those of its batches, in the file's order, and nobody unpacks them to join
them. Unpacking needs a fixed amount of memory, and one record.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

import msgspec

#: So many rejections of an upload are shown in its status.
SHOWN: Final = 10
#: A reason quotes values, and a name in a header may be long; what is shown stays a line.
_SHOWN_CHARACTERS: Final = 300

#: The fastest level: reasons repeat themselves, and even it finds that.
_LEVEL: Final = 1
_LENGTH: Final = struct.Struct(">I")
#: Compressed at a time, and unpacked at a time.
_PIECE_BYTES: Final = 64 * 1024


class Rejection(NamedTuple):
    """A record or row that is not loaded, and why.

    :param line: line of the file on which the record begins, from 1.
    :param offset: byte of the decoded file at which the record begins, from 0.
    :param column: the column that is to blame, as the header names it; `None` when it is the whole record.
    :param code: stable, such as `invalid_uuid`.
    :param reason: a sentence; Postgres' own words where Postgres was asked.
    :param record: its bytes as they stand in the file, with the line end; of a line that is too long those up to the
        limit, and a line end.
    """

    line: int
    offset: int
    column: str | None
    code: str
    reason: str
    record: bytes = b""

    @property
    def shown(self) -> dict[str, Any]:
        """What the status shows of it, JSON-ready."""
        column = None if self.column is None else self.column[:_SHOWN_CHARACTERS]
        return {
            "line": self.line,
            "byteOffset": self.offset,
            "column": column,
            "code": self.code,
            "reason": self.reason[:_SHOWN_CHARACTERS],
        }


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Rejection).decode


@dataclass(frozen=True, slots=True)
class Rejects:
    """Some rejections, packed; iterating unpacks them one by one.

    :param packed: in the form that this module describes.
    :param by_code: how many there are.
    :param first: `Rejection.shown` of the first few.
    """

    packed: bytes = b""
    by_code: Mapping[str, int] = field(default_factory=dict)
    first: tuple[dict[str, Any], ...] = ()

    @classmethod
    def pack(cls, rejections: Iterable[Rejection]) -> Self:
        """Pack rejections, in the order in which they come. Holds them only one by one."""
        compressor = zlib.compressobj(_LEVEL)
        packed, by_code, first = bytearray(), Counter[str](), list[dict[str, Any]]()
        frames = bytearray()
        for each in rejections:
            by_code[each.code] += 1
            if len(first) < SHOWN:
                first.append(each.shown)
            body = _encode(each)
            frames += _LENGTH.pack(len(body))
            frames += body
            if len(frames) >= _PIECE_BYTES:
                packed += compressor.compress(frames)
                frames.clear()
        if not by_code:
            return cls()
        packed += compressor.compress(frames)
        packed += compressor.flush()
        return cls(bytes(packed), dict(by_code), tuple(first))

    @classmethod
    def join(cls, parts: Iterable[Rejects]) -> Self:
        """The rejections of all parts, one after another."""
        packed, by_code, first = [], Counter[str](), list[dict[str, Any]]()
        for part in parts:
            packed.append(part.packed)
            by_code.update(part.by_code)
            first += part.first[: SHOWN - len(first)]
        return cls(b"".join(packed), dict(by_code), tuple(first))

    def __len__(self) -> int:
        return sum(self.by_code.values())

    def __iter__(self) -> Iterator[Rejection]:
        unpacker = Unpacker()
        yield from unpacker.feed(self.packed)
        unpacker.finish()

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return len(self.packed)


#: No rejections.
NONE: Final = Rejects()


class Unpacker:
    """Unpacks rejections from pieces of any size.

    Memory: 64 KiB, the frame that is being put together, and what has been fed.
    """

    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj()
        self._frames = bytearray()
        self._between = True

    def feed(self, packed: bytes) -> Iterator[Rejection]:
        """The rejections that are complete with this piece. Iterate to the end before the next one.

        :raises ValueError: these are no packed rejections.
        """
        more = bool(packed)
        while more:
            if self._decompressor.eof:
                self._decompressor = zlib.decompressobj()
            try:
                unpacked = self._decompressor.decompress(packed, _PIECE_BYTES)
            except zlib.error as exc:
                raise ValueError(str(exc)) from exc
            self._frames += unpacked
            self._between = self._decompressor.eof
            packed = self._decompressor.unused_data if self._between else self._decompressor.unconsumed_tail
            # What did not fit may have been taken in already.
            more = bool(packed) or (len(unpacked) == _PIECE_BYTES and not self._between)
            yield from self._complete()

    def finish(self) -> None:
        """Check that nothing is missing.

        :raises ValueError: the last piece was not the end.
        """
        if self._frames or not self._between:
            msg = "the packed rejections end early"
            raise ValueError(msg)

    def _complete(self) -> Iterator[Rejection]:
        frames, position = self._frames, 0
        while position + _LENGTH.size <= len(frames):
            (length,) = _LENGTH.unpack_from(frames, position)
            end = position + _LENGTH.size + length
            if end > len(frames):
                break
            yield _decode(frames[position + _LENGTH.size : end])
            position = end
        del frames[:position]
