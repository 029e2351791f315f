"""What flows between the stages of a load: batches of records, rows, and encoded rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stream_api.load.flaws import Flaws
from stream_api.load.rejects import NONE, Rejection, Rejects

Int64s = npt.NDArray[np.int64]

#: Codes of records that the reader refuses before anybody looks at their fields.
UNCLOSED_QUOTE: Final = "unclosed_quote"
RECORD_TOO_LONG: Final = "record_too_long"
#: What follows the beginning of a line that is too long, up to the line's end: no record, and no row.
CONTINUED: Final = "continued"

#: Rejections that are made of arrays at once: what they are made of weighs some 200 bytes for each.
_TOGETHER: Final = 4096


def joined(refused: Mapping[int, str]) -> Int64s:
    """The numbers of those records that are the rest of the line on which the one before them begins."""
    return np.array([number for number, code in refused.items() if number and code == CONTINUED], np.int64)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a batch lies in the file; its parts are those of `Batch`, without the bytes."""

    segment: int
    start: int
    end: int
    first_line: int
    lines: int
    ends_segment: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Some whole records of one segment, as cut: the unit of parsing, validating and encoding.

    :param segment: number of the segment that all its records belong to.
    :param start: byte of the decoded file at which `data` begins.
    :param first_line: line of the file on which `data` begins, from 1.
    :param data: the records with their line ends.
    :param ends: for each record, blank ones too, the offset in `data` just past its line end.
    :param lines: lines that `data` holds (line ends, quoted ones too).
    :param ends_segment: the next record, if there is one, belongs to another segment.
    :param refused: records that are no rows, by their number, with `UNCLOSED_QUOTE`, `RECORD_TOO_LONG` (of these the
        rest of the line follows) or `CONTINUED`.
    :param inner: for each record, the number of line ends within those before it; empty where none is within a record.
    """

    segment: int
    start: int
    first_line: int
    data: bytes
    ends: Int64s
    lines: int
    ends_segment: bool
    refused: Mapping[int, str] = field(default_factory=dict)
    inner: Int64s = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def end(self) -> int:
        """The byte of the decoded file just past this batch."""
        return self.start + len(self.data)

    @property
    def starts(self) -> Int64s:
        """For each record, the offset in `data` at which it begins."""
        return np.concatenate((np.zeros(1, np.int64), self.ends[:-1]))[: self.ends.size]

    @property
    def record_lines(self) -> Int64s:
        """For each record, the line of the file on which it begins."""
        numbers = np.arange(self.ends.size)
        lines = numbers + self.first_line
        if self.inner.size:
            lines += self.inner
        continued = joined(self.refused)
        if continued.size:
            lines -= np.searchsorted(continued, numbers, side="right")
        return lines

    def records(self, offsets: Int64s) -> Iterator[bytes]:
        """The records that begin at these bytes of the decoded file, with their line ends."""
        starts = offsets - self.start
        ends = self.ends[np.searchsorted(self.ends, starts, side="right")]
        return (self.data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True))

    @property
    def header(self) -> bytes:
        """The header with what stands before it, byte for byte; empty but for the batch that holds it."""
        return self.data if self.start == 0 and not self.ends.size else b""

    @property
    def span(self) -> Span:
        """Where it lies."""
        return Span(self.segment, self.start, self.end, self.first_line, self.lines, self.ends_segment)

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return len(self.data) + self.ends.nbytes + self.inner.nbytes


@dataclass(frozen=True, slots=True)
class Rows:
    """The records of a batch that have the right number of fields, parsed.

    :param batch: where they come from.
    :param read: records in the batch that count as rows (neither blank nor the header).
    :param table: one string column for each column of the file, in its order, named by its number; an empty unquoted
        field is null, a quoted empty one is `''`. Valid UTF-8 without NUL.
    :param records: for each row of `table`, the number of its record in the batch.
    :param record_lines: for each record of the batch, the line of the file on which it begins.
    :param flaws: the records that did not become rows.
    :param line_end: what a line that was cut off is given, lest the next rejected record be joined to it.
    """

    batch: Batch
    read: int
    table: pa.RecordBatch
    records: Int64s
    record_lines: Int64s
    flaws: Flaws
    line_end: bytes = b"\n"

    @property
    def lines(self) -> Int64s:
        """For each row of `table`, the line on which it begins."""
        return self.record_lines[self.records]

    @property
    def offsets(self) -> Int64s:
        """For each row of `table`, the byte of the decoded file at which it begins."""
        return self.batch.start + self.batch.starts[self.records]

    def rejections(self, flaws: Flaws) -> Iterator[Rejection]:
        """The rejections of the records that have a flaw, in the file's order."""
        batch, starts, every = self.batch, self.batch.starts, flaws.records
        for first in range(0, every.size, _TOGETHER):
            some = every[first : first + _TOGETHER]
            places = zip(
                self.record_lines[some].tolist(), starts[some].tolist(), batch.ends[some].tolist(), strict=True
            )
            for (line, start, end), (column, code, reason) in zip(places, flaws.of(some), strict=True):
                record = batch.data[start:end]
                if code == RECORD_TOO_LONG:
                    record += self.line_end
                yield Rejection(line, batch.start + start, column, code, reason, record)

    @property
    def size_bytes(self) -> int:
        """Bytes held, the batch's own included."""
        held = self.table.nbytes + self.records.nbytes + self.record_lines.nbytes + self.flaws.size_bytes
        return self.batch.size_bytes + held


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch ready for COPY: rows in binary form, rows in CSV form (those only Postgres can read), rejections.

    :param span: of the batch, whose bytes are no longer held.
    :param read: `Rows.read`; equal to binary rows + CSV rows + rejections.
    :param binary: pieces of binary COPY data, without its header and trailer.
    :param binary_lines: the file's line of each row in `binary`, in its order.
    :param csv: rows for `COPY … (FORMAT csv)`, no header: null is empty, an empty string is `""`.
    :param csv_lines: as `binary_lines`, for `csv`.
    :param rejections: of the batch, in the file's order.
    :param header: see `Batch.header`.
    """

    span: Span
    read: int
    binary: tuple[bytes | memoryview, ...]
    binary_lines: Int64s
    csv: bytes
    csv_lines: Int64s
    rejections: Rejects = NONE
    header: bytes = b""

    @property
    def size_bytes(self) -> int:
        """Bytes held by the encoded rows, the rejections and the header."""
        rows = sum(map(len, self.binary)) + len(self.csv) + self.binary_lines.nbytes + self.csv_lines.nbytes
        return rows + self.rejections.size_bytes + len(self.header)
