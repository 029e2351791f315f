"""Parses the records of a batch into columns: pyarrow where it reads as the grammar does, our own parser elsewhere."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc_compute
import pyarrow.csv as pc

from stream_api.dialects.dialect import Dialect
from stream_api.load.encodings import recode
from stream_api.load.grammar import Grammar, line_end_positions
from stream_api.load.model import CONTINUED, RECORD_TOO_LONG, UNCLOSED_QUOTE, Batch, Int64s, Rows
from stream_api.load.rejects import Rejection, Rejects

_LF, _CR, _NUL = 10, 13, 0
_MARK: Final = codecs.BOM_UTF8

#: Why the reader has refused a record.
_REASONS: Final = {
    UNCLOSED_QUOTE: "A quote is opened on this line and not closed as it should be: before the end of the file and "
    "within the longest record that is allowed, with a delimiter or a line end after it",
    RECORD_TOO_LONG: "The line is longer than the longest record that is allowed (STREAM_API_MAX_RECORD_BYTES)",
}


@dataclass
class Parser:
    """Parses batches whose records have these columns.

    :param columns: their names, in the file's order, for rejections.
    :param max_value_bytes: of a field, in UTF-8; a longer one costs its record.
    """

    dialect: Dialect
    columns: Sequence[str]
    max_value_bytes: int = sys.maxsize
    grammar: Grammar = field(init=False, repr=False)
    schema: pa.Schema = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.grammar = Grammar.of(self.dialect)
        self.schema = pa.schema([(str(number), pa.string()) for number in range(len(self.columns))])

    def parse(self, batch: Batch) -> Rows:
        """The rows of `batch`; holds the GIL only in short stretches.

        Memory: the strings take about the batch's size again (2.5 times that where fields are one byte long), and text
        in another encoding as UTF-8 as well (up to 2 times).
        """
        return _Parsing(self, batch).rows()


class _Parsing:
    """The parsing of one batch."""

    def __init__(self, parser: Parser, batch: Batch) -> None:
        self.parser = parser
        self.grammar = parser.grammar
        self.schema = parser.schema
        self.batch = batch
        #: The batch in UTF-8, the ends of its records in that, and the records that are no text.
        self.data, self.ends, self.no_text = recode(batch.data, batch.ends, parser.dialect.encoding)
        self.starts = _starts(self.ends)
        #: Records that are rows as far as is known, by their number in the batch.
        self.kept: Int64s = self._not_blank()
        self.read = int(self.kept.size)
        self.rejected: dict[int, tuple[str, str]] = {}
        #: The column that is to blame, where it is not the whole record.
        self.blamed: dict[int, str] = {}
        #: Code and reason, by the number of fields: one for all records that have it.
        self.wrong_counts: dict[int, tuple[str, str]] = {}

    def rows(self) -> Rows:
        self._reject_unreadable()
        table = self._parse_with_arrow()
        if table is None:
            table = self._parse_exactly()
        table = self._without_long_values(table)
        lines = self._lines(self.kept)
        return Rows(
            batch=self.batch,
            read=self.read,
            table=table,
            lines=lines,
            offsets=self.batch.start + self.batch.starts[self.kept],
            rejections=Rejects.pack(self._rejections()),
        )

    def _not_blank(self) -> Int64s:
        """Records that are rows: no comments, and no blank lines unless the file has one column.

        Of one column a blank line is the empty value (as Postgres sees it).
        """
        every = np.arange(self.starts.size)
        if not every.size:
            return every
        first = np.frombuffer(self.data, np.uint8)[self.starts]
        rows = np.ones(every.size, np.bool_) if len(self.schema) == 1 else (first != _LF) & (first != _CR)
        if self.grammar.comment:
            rows &= first != self.grammar.comment[0]
        for record, code in self.batch.refused.items():
            if code == CONTINUED:
                rows[record] = False
        kept: Int64s = every[rows]
        return kept

    def _reject(self, record: int, code: str, reason: str) -> None:
        self.rejected[record] = (code, reason)

    def _reject_unreadable(self) -> None:
        """Reject what the reader has refused, and what Postgres can store in no column (NUL, what is no text)."""
        data = self.data
        if not self.ends.size:
            return
        if b"\0" in data:
            positions = np.flatnonzero(np.frombuffer(data, np.uint8) == _NUL)
            for record in np.intersect1d(np.searchsorted(self.ends, positions, side="right"), self.kept).tolist():
                self._reject(record, "nul_byte", "The record contains a NUL byte, which PostgreSQL cannot store")
        if self.batch.refused:
            for record in np.intersect1d(list(self.batch.refused), self.kept).tolist():
                code = self.batch.refused[record]
                self._reject(record, code, _REASONS[code])
        encoding = self.parser.dialect.encoding
        if encoding == "utf-8":
            if not _is_utf8(data):
                self._reject_invalid_utf8()
        else:
            for record in np.intersect1d(self.no_text, self.kept).tolist():
                if record not in self.rejected:
                    self._reject(record, "invalid_encoding", f"The record is not valid {encoding.upper()}")
        self._drop_rejected()

    def _reject_invalid_utf8(self) -> None:
        data, ends = self.data, self.ends
        view = memoryview(data)
        position = 0
        kept = np.zeros(ends.size, np.bool_)
        kept[self.kept] = True
        while position < len(data):
            try:
                str(view[position:], "utf-8")
            except UnicodeDecodeError as exc:
                record = int(np.searchsorted(ends, position + exc.start, side="right"))
                if kept[record] and record not in self.rejected:
                    byte = data[position + exc.start]
                    self._reject(record, "invalid_utf8", f"The record is not valid UTF-8: {exc.reason} (0x{byte:02x})")
                position = int(ends[record])
            else:
                break

    def _drop_rejected(self) -> None:
        if self.rejected:
            self.kept = self.kept[~np.isin(self.kept, list(self.rejected))]

    def _readable(self) -> bytes:
        """The bytes of the kept records, each with its line end."""
        if self.kept.size == self.starts.size:
            data = self.data
        else:
            # Runs of neighbours are copied at once.
            breaks = np.flatnonzero(np.diff(self.kept) != 1)
            firsts = self.kept[np.concatenate((np.zeros(1, np.int64), breaks + 1))]
            lasts = self.kept[np.append(breaks, self.kept.size - 1)]
            view = memoryview(self.data)
            spans = zip(self.starts[firsts].tolist(), self.ends[lasts].tolist(), strict=True)
            data = b"".join([view[start:end] for start, end in spans])
        if data.startswith(_MARK):
            # A character of the first value. pyarrow takes it for the mark of a file, so it gets one to take.
            data = _MARK + data
        # Without a last line end pyarrow reads the empty last field of `"",` as a quoted one.
        return data if data.endswith((b"\n", b"\r")) else data + b"\n"

    def _parse_with_arrow(self) -> pa.RecordBatch | None:
        """The kept records by pyarrow; None where it saw other records than the grammar did."""
        if not self.kept.size:
            return _empty(self.schema)
        # Arrow's own escapes would be in force everywhere, and before every character.
        data = self.grammar.doubled(self._readable())
        wrong: list[tuple[int, int]] = []

        def on_wrong_count(row: pc.InvalidRow) -> Literal["skip"]:
            wrong.append((cast("int", row.number), row.actual_columns))  # None only when read by several threads
            return "skip"

        table = pc.read_csv(
            pa.BufferReader(data),  # type: ignore[arg-type]  # any file of Arrow's will do
            # One block: a record never straddles two, and the numbers of rows are known.
            read_options=pc.ReadOptions(column_names=self.schema.names, use_threads=False, block_size=len(data) + 1),
            parse_options=pc.ParseOptions(
                delimiter=self.grammar.delimiter.decode(),
                quote_char=self.grammar.quote.decode() or False,
                newlines_in_values=True,
                ignore_empty_lines=len(self.schema) > 1,
                invalid_row_handler=on_wrong_count,
            ),
            convert_options=pc.ConvertOptions(
                column_types=self.schema,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=[""],
                check_utf8=False,
            ),
        )
        if table.num_rows + len(wrong) != self.kept.size:
            return None
        if wrong:
            for number, actual in wrong:
                self._reject_count(int(self.kept[number - 1]), actual)
            self._drop_rejected()
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else _empty(self.schema)

    def _parse_exactly(self) -> pa.RecordBatch:
        """The kept records, one by one, by the grammar."""
        data, width = self.data, len(self.schema)
        columns: list[list[str | None]] = [[] for _ in range(width)]
        for record in self.kept.tolist():
            values = self.grammar.fields(data[self.starts[record] : self.ends[record]])
            if len(values) != width:
                self._reject_count(record, len(values))
                continue
            for column, value in zip(columns, values, strict=True):
                column.append(None if value is None else value.decode())
        self._drop_rejected()
        return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=self.schema)

    def _without_long_values(self, table: pa.RecordBatch) -> pa.RecordBatch:
        """Reject rows with a value that is longer than the limit."""
        limit = self.parser.max_value_bytes
        if not self.kept.size or int((self.ends - self.starts).max()) <= limit:
            return table
        long = np.zeros(table.num_rows, np.bool_)
        for name, column in zip(self.parser.columns, table.columns, strict=True):
            texts: Any = column  # the stubs know a table's columns as arrays of anything
            lengths = pc_compute.fill_null(pc_compute.binary_length(texts), 0).to_numpy()
            for row in np.flatnonzero((lengths > limit) & ~long).tolist():
                reason = f"The value has {lengths[row]} bytes, and {limit} are allowed (STREAM_API_MAX_VALUE_BYTES)"
                self.blamed[int(self.kept[row])] = name
                self._reject(int(self.kept[row]), "value_too_long", reason)
            long |= lengths > limit
        if not long.any():
            return table
        self._drop_rejected()
        return table.filter(pa.array(~long))

    def _reject_count(self, record: int, actual: int) -> None:
        if actual not in self.wrong_counts:
            reason = f"The record has {actual} fields where the header has {len(self.schema)}"
            self.wrong_counts[actual] = "wrong_field_count", reason
        self.rejected[record] = self.wrong_counts[actual]

    def _lines(self, records: Int64s) -> Int64s:
        """The line of the file on which each record begins."""
        batch = self.batch
        unended = not self.data.endswith((b"\n", b"\r"))
        if batch.lines == batch.ends.size - unended and not batch.refused:  # each record is one line
            return batch.first_line + records
        return batch.first_line + np.searchsorted(line_end_positions(self.data), self.starts[records])

    def _rejections(self) -> Iterator[Rejection]:
        if not self.rejected:
            return
        batch, records, starts = self.batch, np.array(sorted(self.rejected), np.int64), self.batch.starts
        for record, line in zip(records.tolist(), self._lines(records).tolist(), strict=True):
            start, end = int(starts[record]), int(batch.ends[record])
            column, (code, reason) = self.blamed.get(record), self.rejected[record]
            yield Rejection(line, batch.start + start, column, code, reason, batch.data[start:end])


def _starts(ends: Int64s) -> Int64s:
    return np.concatenate((np.zeros(1, np.int64), ends[:-1]))[: ends.size]


def _is_utf8(data: bytes) -> bool:
    """Whether `data` is UTF-8: as decoding it would tell, without making a string of it (four times as fast)."""
    offsets = np.array([0, len(data)], np.int32)
    try:
        pa.StringArray.from_buffers(1, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([pa.array([], pa.string()) for _ in schema], schema=schema)
