"""Cuts bytes into records, batches and segments: at the same places, however the bytes arrive."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from stream_api.dialects.dialect import Dialect
from stream_api.load.encodings import shadow, unit_bytes
from stream_api.load.grammar import Grammar, Reading, count_lines
from stream_api.load.header import Limits, find_header
from stream_api.load.model import CONTINUED, Batch, Int64s, joined

_NONE: Final[Int64s] = np.empty(0, np.int64)
_LINE_END: Final = b"\r\n"


class Cutter:
    """Cuts one run of bytes of the decoded file, handed in piece by piece, into batches.

    Segment k begins at the first record that starts at or past byte k × `segment_bytes`; a record therefore belongs
    to segment `start // segment_bytes`, whatever the pieces were. The header, with what stands before it, is a
    batch of its own without records, and belongs to segment 0; of a file without one that is what stands before its
    first record, mostly nothing.

    Memory: what has been handed in and not cut (at most `batch_bytes` + one piece + the longest record), and while
    cutting the batches made of it and some 2 bytes of index for each byte; of UTF-16 another half.

    Time: a record that is not complete is looked at again when twice as much, or a batch more, has come; in a file full
    of quotes that are never closed each byte is looked at (longest record ÷ batch + 2) times.

    :param start: byte of the decoded file at which the pieces begin; 0, or where a record begins.
    :param line: line of the file at `start`, from 1.
    :param named: the file has a header.
    :param batch_bytes: batches close at the first record that reaches this size.
    :param batch_records: and at this many records.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        segment_bytes: int,
        batch_bytes: int,
        limits: Limits,
        named: bool = True,
        batch_records: int = sys.maxsize,
        start: int = 0,
        line: int = 1,
    ) -> None:
        self._dialect = dialect
        self._grammar = Grammar.of(dialect)
        self._unit = unit_bytes(dialect.encoding)
        self._segment_bytes = segment_bytes
        self._batch_bytes = batch_bytes
        self._batch_records = batch_records
        self._limits = limits
        self._start = start
        self._line = line
        self._named = named
        self._header_wanted = start == 0
        #: Whether what comes next is the rest of a line that is too long, and where that line begins.
        self._in_line = False
        self._line_start = 0
        self._pieces: list[bytes] = []
        self._held = 0
        self._wanted = batch_bytes

    def add(self, piece: bytes) -> bool:
        """Take `piece`; True when `cut` is worth calling."""
        self._pieces.append(piece)
        self._held += len(piece)
        return self._held >= self._wanted

    def cut(self, *, final: bool = False) -> list[Batch]:
        """The batches that can be made of what was taken; with `final`, of all of it.

        :raises Failure: what is wrong with the header: see `find_header`.
        """
        data = b"".join(self._pieces)
        self._pieces.clear()
        start = self._start
        batches = list(self._batches(data, final=final))
        rest = data[self._start - start :]
        self._pieces = [rest]
        self._held = len(rest)
        # A long unfinished record is looked at again only when much more has come: never quadratic.
        self._wanted = max(self._batch_bytes, min(2 * self._held, self._limits.longest + self._batch_bytes))
        return batches

    def _batches(self, data: bytes, *, final: bool) -> Iterator[Batch]:
        if self._header_wanted:
            found = find_header(data, self._dialect, final=final, limits=self._limits, named=self._named)
            if found is None:
                return
            self._header_wanted = False
            data, header = data[found[1] :], data[: found[1]]
            lines = count_lines(shadow(header, self._dialect.encoding))
            yield self._batch(header, lines, 0, following=self._start + found[1])
        if len(data) % self._unit and not final:
            data = data[:-1]
        text = shadow(data, self._dialect.encoding)
        unit, base, size = self._unit, self._start, len(data)
        reading = self._grammar.read(text, final=final, limit=self._limits.record // unit, in_line=self._in_line)
        if not reading.ends.size:
            return
        ends, inner = np.minimum(reading.ends * unit, size), reading.inner * unit
        starts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
        owners = self._owners(base + starts, reading)
        first = 0
        while first < ends.size:
            segment = int(owners[first]) // self._segment_bytes
            until_segment = np.searchsorted(owners, (segment + 1) * self._segment_bytes)
            until_full = np.searchsorted(ends, starts[first] + self._batch_bytes) + 1
            last = min(int(until_segment), int(until_full), int(ends.size), first + self._batch_records)
            begin, end = int(starts[first]), int(ends[last - 1])
            refused = {number - first: code for number, code in reading.refused.items() if first <= number < last}
            within = inner[slice(*np.searchsorted(inner, (begin, end)))]
            unended = text[reading.ends[last - 1] - 1] not in _LINE_END
            yield self._batch(
                data[begin:end],
                last - first + within.size - joined(refused).size - unended,
                segment,
                ends=ends[first:last] - begin,
                # By records, of which a batch has not too many: one may be made of line ends.
                inner=np.searchsorted(within, starts[first:last]) if within.size else _NONE,
                refused=refused,
                following=int(owners[last]),
            )
            first = last

    def _owners(self, starts: Int64s, reading: Reading) -> Int64s:
        """Where what decides on its segment begins, for each record and for what follows the last.

        What is left of a line that is too long stays in the segment of its beginning.
        """
        following = self._start + int(reading.ends[-1]) * self._unit
        owners = np.append(starts, following)
        for number, code in reading.refused.items():
            if code == CONTINUED:
                owners[number] = owners[number - 1] if number else self._line_start
        self._in_line = reading.in_line
        if reading.in_line:
            self._line_start = owners[-1] = owners[-2]
        return owners

    def _batch(
        self,
        data: bytes,
        lines: int,
        segment: int,
        *,
        following: int,
        ends: Int64s = _NONE,
        inner: Int64s = _NONE,
        refused: Mapping[int, str] | None = None,
    ) -> Batch:
        """Make a batch and go past it.

        :param following: where what decides on the segment of the next record begins.
        """
        start, line = self._start, self._line
        self._start += len(data)
        self._line += lines
        ends_segment = following // self._segment_bytes != segment
        return Batch(segment, start, line, data, ends, lines, ends_segment, refused or {}, inner)
