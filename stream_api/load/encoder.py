"""Rows into the two forms that COPY reads: binary, by pgpq where it can be had, and CSV, by Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv

from stream_api.datasets.plan import Plan, PlanColumn

try:
    import pgpq
    from pgpq import encoders, schema
except ImportError:
    # It has no wheels for Linux on ARM since 0.10, and 0.9 cannot encode numerics. Rows then go as CSV.
    BINARY = False
else:
    BINARY = True

#: Fields encoded in one call: pgpq holds the GIL for about 40 ns a field, so this is some 1.5 ms.
_SLICE_FIELDS: Final = 40_000
#: What ends binary COPY data: a field count of -1.
_TRAILER: Final = b"\xff\xff"

# Every string is quoted, so that an empty one differs from NULL and `\.` is no end of the data; NULL is nothing at all.
_CSV_OPTIONS: Final = pyarrow.csv.WriteOptions(include_header=False, delimiter=",", quoting_style="needed")

_ARROW_TYPES: Final[dict[str, pa.DataType]] = {
    "uuid": pa.binary(16),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    **dict.fromkeys(("text", "enum", "json", "jsonb"), pa.string()),
}


class BinaryEncoder:
    """Encodes typed rows as binary COPY data, without its header and trailer.

    :param columns: of a plan whose `copy_format` is `binary`.
    """

    def __init__(self, columns: Sequence[PlanColumn]) -> None:
        # pgpq knows columns by name; two of ours may not share one, but a name could still be odd: numbers are not.
        fields = [pa.field(str(number), _arrow_type(column)) for number, column in enumerate(columns)]
        self._schema = pa.schema(fields)
        jsonb: dict[str, Any] = {
            field.name: encoders.StringEncoderBuilder.new_with_output(field, schema.Jsonb())
            for field, column in zip(fields, columns, strict=True)
            if column.kind == "jsonb"
        }
        infer = pgpq.ArrowToPostgresBinaryEncoder.infer_encoder
        #: `None` where pgpq finds the right ones by itself.
        self._builders = {field.name: infer(field) for field in fields} | jsonb if jsonb else None

    def encode(
        self, arrays: Sequence[pa.Array[Any]], keep: pa.BooleanArray | None = None
    ) -> tuple[bytes | memoryview, ...]:
        """Encode a batch.

        :param arrays: one for each column, in its typed form.
        :param keep: the rows to encode; `None` means all.
        :returns: pieces that concatenate to the rows. Holds the GIL, for some 1.5 ms at a time.
        """
        batch = pa.RecordBatch.from_arrays(list(arrays), schema=self._schema)
        if keep is not None:
            batch = batch.filter(keep)
        if batch.num_rows == 0:
            return ()
        encoder = self._new_encoder()
        encoder.write_header()
        rows = max(1, _SLICE_FIELDS // batch.num_columns)
        pieces: list[bytes | memoryview] = [
            encoder.write_batch(batch.slice(start, rows)) for start in range(0, batch.num_rows, rows)
        ]
        # The rest of the rows and the trailer; a view leaves the trailer out without another copy.
        pieces.append(memoryview(encoder.finish())[: -len(_TRAILER)])
        return tuple(piece for piece in pieces if piece)

    def _new_encoder(self) -> pgpq.ArrowToPostgresBinaryEncoder:
        """An encoder's state is that of one COPY, so each batch gets one of its own.

        Where pgpq may infer the columns' encoders that takes 10 µs, where it is handed them up to 30 µs a column.
        """
        if self._builders is not None:
            return pgpq.ArrowToPostgresBinaryEncoder.new_with_encoders(self._schema, self._builders)
        return pgpq.ArrowToPostgresBinaryEncoder(self._schema)


def binary_encoder(plan: Plan) -> BinaryEncoder | None:
    """The encoder for a plan's rows; `None` where they go as CSV: a type has no binary form, or there is no pgpq."""
    return BinaryEncoder(plan.columns) if BINARY and plan.copy_format == "binary" else None


def encode_csv(table: pa.RecordBatch) -> bytes:
    """Encode rows of text for `COPY … (FORMAT csv)`."""
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink, _CSV_OPTIONS)
    return sink.getvalue().to_pybytes()


def _arrow_type(column: PlanColumn) -> pa.DataType:
    if column.kind == "numeric" and column.precision is not None and column.scale is not None:
        return pa.decimal128(column.precision, column.scale)
    return _ARROW_TYPES[column.kind]
