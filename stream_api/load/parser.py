"""Parses the records of a batch into columns: pyarrow where it reads as the grammar does, our own parser elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc

from stream_api.load.grammar import Grammar, line_end_positions
from stream_api.load.model import Batch, Int64s, Rejection, Rows

_LF, _CR, _NUL = 10, 13, 0


@dataclass
class Parser:
    """Parses batches whose records have these columns.

    :param columns: their names, in the file's order.
    """

    grammar: Grammar
    columns: Sequence[str]
    _schema: pa.Schema = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._schema = pa.schema([(name, pa.string()) for name in self.columns])

    def parse(self, batch: Batch) -> Rows:
        """The rows of `batch`; holds the GIL only in short stretches.

        Memory: the strings take about the batch's size again (2.5 times that where fields are one byte long).
        """
        return _Parsing(self.grammar, self._schema, batch).rows()


class _Parsing:
    """The parsing of one batch."""

    def __init__(self, grammar: Grammar, schema: pa.Schema, batch: Batch) -> None:
        self.grammar = grammar
        self.schema = schema
        self.batch = batch
        self.starts: Int64s = np.concatenate((np.zeros(1, np.int64), batch.ends[:-1]))[: batch.ends.size]
        #: Records that are rows as far as is known, by their number in the batch.
        self.kept: Int64s = self._not_blank()
        self.read = int(self.kept.size)
        self.rejected: dict[int, tuple[str, str]] = {}

    def rows(self) -> Rows:
        self._reject_unreadable()
        table = self._parse_with_arrow()
        if table is None:
            table = self._parse_exactly()
        lines = self._lines(self.kept)
        return Rows(
            batch=self.batch,
            read=self.read,
            table=table,
            lines=lines,
            offsets=self.batch.start + self.starts[self.kept],
            rejections=self._rejections(),
        )

    def _not_blank(self) -> Int64s:
        """A blank line is no row, unless the file has one column, whose empty value it is (as Postgres sees it)."""
        every = np.arange(self.starts.size)
        if len(self.schema) == 1 or not every.size:
            return every
        first = np.frombuffer(self.batch.data, np.uint8)[self.starts]
        not_blank: Int64s = every[(first != _LF) & (first != _CR)]
        return not_blank

    def _reject(self, record: int, code: str, reason: str) -> None:
        self.rejected[record] = (code, reason)

    def _reject_unreadable(self) -> None:
        """Reject what Postgres can store in no column (NUL, invalid UTF-8), and a quote that is never closed."""
        data, ends = self.batch.data, self.batch.ends
        if not ends.size:
            return
        if b"\0" in data:
            positions = np.flatnonzero(np.frombuffer(data, np.uint8) == _NUL)
            for record in np.unique(np.searchsorted(ends, positions, side="right")).tolist():
                self._reject(record, "nul_byte", "The record contains a NUL byte, which PostgreSQL cannot store")
        last = int(ends.size) - 1
        if last not in self.rejected and not self.grammar.is_closed(data[self.starts[last] :]):
            self._reject(last, "unclosed_quote", "A quote is opened and not closed before the end of the file")
        if not _is_utf8(data):
            self._reject_invalid_utf8()
        self._drop_rejected()

    def _reject_invalid_utf8(self) -> None:
        data, ends = self.batch.data, self.batch.ends
        view = memoryview(data)
        position = 0
        while position < len(data):
            try:
                str(view[position:], "utf-8")
            except UnicodeDecodeError as exc:
                record = int(np.searchsorted(ends, position + exc.start, side="right"))
                if record not in self.rejected:
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
            data = self.batch.data
        else:
            # Runs of neighbours are copied at once.
            breaks = np.flatnonzero(np.diff(self.kept) != 1)
            firsts = self.kept[np.concatenate((np.zeros(1, np.int64), breaks + 1))]
            lasts = self.kept[np.append(breaks, self.kept.size - 1)]
            view = memoryview(self.batch.data)
            spans = zip(self.starts[firsts].tolist(), self.batch.ends[lasts].tolist(), strict=True)
            data = b"".join([view[start:end] for start, end in spans])
        # Without a last line end pyarrow reads the empty last field of `"",` as a quoted one.
        return data if data.endswith((b"\n", b"\r")) else data + b"\n"

    def _parse_with_arrow(self) -> pa.RecordBatch | None:
        """The kept records by pyarrow; None where it saw other records than the grammar did."""
        if not self.kept.size:
            return _empty(self.schema)
        data = self._readable()
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
                quote_char=self.grammar.quote.decode(),
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
        data, width = self.batch.data, len(self.schema)
        columns: list[list[str | None]] = [[] for _ in range(width)]
        for record in self.kept.tolist():
            values = self.grammar.fields(data[self.starts[record] : self.batch.ends[record]])
            if len(values) != width:
                self._reject_count(record, len(values))
                continue
            for column, value in zip(columns, values, strict=True):
                column.append(None if value is None else value.decode())
        self._drop_rejected()
        return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=self.schema)

    def _reject_count(self, record: int, actual: int) -> None:
        self._reject(
            record, "wrong_field_count", f"The record has {actual} fields where the header has {len(self.schema)}"
        )

    def _lines(self, records: Int64s) -> Int64s:
        """The line of the file on which each record begins."""
        batch = self.batch
        unended = not batch.data.endswith((b"\n", b"\r"))
        if batch.lines == batch.ends.size - unended:  # each record is one line
            return batch.first_line + records
        return batch.first_line + np.searchsorted(line_end_positions(batch.data), self.starts[records])

    def _rejections(self) -> list[Rejection]:
        if not self.rejected:
            return []
        records = np.array(sorted(self.rejected), np.int64)
        return [
            Rejection(line, self.batch.start + start, None, *self.rejected[record])
            for record, line, start in zip(
                records.tolist(), self._lines(records).tolist(), self.starts[records].tolist(), strict=True
            )
        ]


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
