"""Parses the records of a batch into columns: pyarrow where it reads as the grammar does, our own parser elsewhere."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc_compute
import pyarrow.csv as pc

from stream_api.dialects.dialect import Dialect
from stream_api.load.columns.base import Bools
from stream_api.load.encodings import recode
from stream_api.load.flaws import Flaw, Flaws
from stream_api.load.grammar import Grammar
from stream_api.load.model import CONTINUED, RECORD_TOO_LONG, UNCLOSED_QUOTE, Batch, Int64s, Rows

_LF, _CR, _NUL = 10, 13, 0
_MARK: Final = codecs.BOM_UTF8
#: What pyarrow takes at most, and takes nothing for.
_MOST_BLOCK_BYTES: Final = 2**31 - 1

#: What is looked through at once for a record that is not UTF-8, where there is one.
_PIECE_BYTES: Final = 16 * 1024

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
    # What does not change from batch to batch; with many columns it takes a while to make.
    read_options: pc.ReadOptions = field(init=False, repr=False)
    convert_options: pc.ConvertOptions = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.grammar = Grammar.of(self.dialect)
        self.schema = pa.schema([(str(number), pa.string()) for number in range(len(self.columns))])
        # One block: a record never straddles two, and the numbers of rows are known.
        self.read_options = pc.ReadOptions(
            column_names=self.schema.names, use_threads=False, block_size=_MOST_BLOCK_BYTES
        )
        self.convert_options = pc.ConvertOptions(
            column_types=self.schema,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
            check_utf8=False,
        )

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
        #: For each record whether it is a row, a good one or not.
        self.is_row = self._not_blank()
        #: Records that are rows without a flaw as far as is known, by their number in the batch.
        self.kept: Int64s = np.flatnonzero(self.is_row)
        self.read = int(self.kept.size)
        self.flaws = Flaws(self.starts.size)

    def rows(self) -> Rows:
        self._reject_unreadable()
        table = self._parse_with_arrow()
        if table is None:
            table = self._parse_exactly()
        table = self._without_long_values(table)
        return Rows(
            batch=self.batch,
            read=self.read,
            table=table,
            records=self.kept,
            record_lines=self.batch.record_lines,
            flaws=self.flaws,
            line_end="\n".encode(self.parser.dialect.encoding),
        )

    def _not_blank(self) -> Bools:
        """Records that are rows: no comments, and no blank lines unless the file has one column.

        Of one column a blank line is the empty value (as Postgres sees it).
        """
        rows, seen = np.ones(self.starts.size, np.bool_), np.frombuffer(self.data, np.uint8)
        if len(self.schema) != 1:
            short = np.flatnonzero(self.ends - self.starts <= len(b"\r\n"))
            first = seen[self.starts[short]]
            rows[short] = (first != _LF) & (first != _CR)
        if self.grammar.comment:
            rows &= seen[self.starts] != self.grammar.comment[0]
        for record, code in self.batch.refused.items():
            if code == CONTINUED:
                rows[record] = False
        return rows

    def _blame(self, records: Int64s, code: str, reason: str, column: str | None = None) -> None:
        """Blame those of the records that are rows."""
        self.flaws.add(records[self.is_row[records]], Flaw(column, code, reason))

    def _blame_each(self, flaws: Mapping[int, Flaw]) -> None:
        """The same, each record for its own flaw."""
        if not flaws:
            return
        records = np.array(list(flaws), np.int64)
        which = np.flatnonzero(self.is_row[records])
        self.flaws.add_each(records[which], list(flaws.values()), which)

    def _reject_unreadable(self) -> None:
        """Reject what the reader has refused, and what Postgres can store in no column (NUL, what is no text)."""
        data = self.data
        if not self.ends.size:
            return
        refused = ((record, code) for record, code in self.batch.refused.items() if code != CONTINUED)
        self._blame_each({record: Flaw(None, code, _REASONS[code]) for record, code in refused})
        if b"\0" in data:
            positions = np.flatnonzero(np.frombuffer(data, np.uint8) == _NUL)
            records = np.unique(np.searchsorted(self.ends, positions, side="right"))
            self._blame(records, "nul_byte", "The record contains a NUL byte, which PostgreSQL cannot store")
        encoding = self.parser.dialect.encoding
        if encoding != "utf-8":
            self._blame(self.no_text, "invalid_encoding", f"The record is not valid {encoding.upper()}")
        elif not _is_utf8(data):
            self._reject_invalid_utf8()
        self._drop_rejected()

    def _reject_invalid_utf8(self) -> None:
        # In pieces of whole records: most are good, which is told quickly.
        ends, steps = self.ends, np.arange(_PIECE_BYTES, len(self.data), _PIECE_BYTES)
        lasts = np.unique(np.append(np.searchsorted(ends, steps), ends.size - 1))
        view, start = memoryview(self.data), 0
        flaws: dict[int, Flaw] = {}
        for end in ends[lasts].tolist():
            if not _is_utf8(view[start:end]):
                flaws |= self._not_utf8(start, end)
            start = end
        self._blame_each(flaws)

    def _not_utf8(self, position: int, end: int) -> dict[int, Flaw]:
        """The records in this part of the data that are no UTF-8."""
        view, flaws = memoryview(self.data), dict[int, Flaw]()
        while position < end:
            try:
                str(view[position:end], "utf-8")
            except UnicodeDecodeError as exc:
                record = int(np.searchsorted(self.ends, position + exc.start, side="right"))
                byte = self.data[position + exc.start]
                reason = f"The record is not valid UTF-8: {exc.reason} (0x{byte:02x})"
                flaws[record] = Flaw(None, "invalid_utf8", reason)
                position = int(self.ends[record])
            else:
                break
        return flaws

    def _drop_rejected(self) -> None:
        if self.flaws:
            self.kept = self.kept[self.flaws.flawless[self.kept]]

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
            read_options=self.parser.read_options,
            parse_options=pc.ParseOptions(
                delimiter=self.grammar.delimiter.decode(),
                quote_char=self.grammar.quote.decode() or False,
                newlines_in_values=True,
                ignore_empty_lines=len(self.schema) > 1,
                invalid_row_handler=on_wrong_count,
            ),
            convert_options=self.parser.convert_options,
        )
        if table.num_rows + len(wrong) != self.kept.size:
            return None
        if wrong:
            numbers, counts = np.array(wrong).T
            self._reject_counts(self.kept[numbers - 1], counts)
        batches = table.combine_chunks().to_batches()
        return batches[0] if batches else _empty(self.schema)

    def _parse_exactly(self) -> pa.RecordBatch:
        """The kept records, one by one, by the grammar."""
        data, width = self.data, len(self.schema)
        columns: list[list[str | None]] = [[] for _ in range(width)]
        wrong: dict[int, int] = {}
        for record in self.kept.tolist():
            values = self.grammar.fields(data[self.starts[record] : self.ends[record]])
            if len(values) != width:
                wrong[record] = len(values)
                continue
            for column, value in zip(columns, values, strict=True):
                column.append(None if value is None else value.decode())
        self._reject_counts(np.array(list(wrong), np.int64), np.array(list(wrong.values()), np.int64))
        return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=self.schema)

    def _without_long_values(self, table: pa.RecordBatch) -> pa.RecordBatch:
        """Reject rows with a value that is longer than the limit."""
        limit = self.parser.max_value_bytes
        if not self.kept.size or len(self.data) <= limit or int((self.ends - self.starts).max()) <= limit:
            return table
        long = np.zeros(table.num_rows, np.bool_)
        for name, column in zip(self.parser.columns, table.columns, strict=True):
            texts: Any = column  # the stubs know a table's columns as arrays of anything
            lengths = pc_compute.fill_null(pc_compute.binary_length(texts), 0).to_numpy()
            for row in np.flatnonzero((lengths > limit) & ~long).tolist():
                reason = f"The value has {lengths[row]} bytes, and {limit} are allowed (STREAM_API_MAX_VALUE_BYTES)"
                self._blame(self.kept[row : row + 1], "value_too_long", reason, name)
            long |= lengths > limit
        if not long.any():
            return table
        self._drop_rejected()
        return table.filter(pa.array(~long))

    def _reject_counts(self, records: Int64s, counts: Int64s) -> None:
        width, (different, which) = len(self.schema), np.unique(counts, return_inverse=True)
        reasons = [f"The record has {count} fields where {width} are expected" for count in different.tolist()]
        self.flaws.add_each(records, [Flaw(None, "wrong_field_count", reason) for reason in reasons], which)
        self._drop_rejected()


def _starts(ends: Int64s) -> Int64s:
    return np.concatenate((np.zeros(1, np.int64), ends[:-1]))[: ends.size]


def _is_utf8(data: bytes | memoryview) -> bool:
    """Whether `data` is UTF-8: as decoding it would tell, without making a string of it (four times as fast)."""
    offsets = np.array([0, len(data)], np.int32)
    try:
        pa.StringArray.from_buffers(1, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([pa.array([], pa.string()) for _ in schema], schema=schema)
