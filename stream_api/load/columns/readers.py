"""Which fast path a column of the plan takes."""

from __future__ import annotations

from typing import Final

from stream_api.datasets.plan import PlanColumn
from stream_api.load.columns.base import Reader, read_nothing
from stream_api.load.columns.documents import json_reader
from stream_api.load.columns.numbers import decimal_reader, float_reader, integer_reader, read_plain_number
from stream_api.load.columns.texts import enum_reader, read_bool, text_reader
from stream_api.load.columns.times import read_date, read_time, read_timestamp, read_timestamptz
from stream_api.load.columns.uuids import read_uuid

_READERS: Final[dict[str, Reader]] = {
    "uuid": read_uuid,
    "int2": integer_reader("int2"),
    "int4": integer_reader("int4"),
    "int8": integer_reader("int8"),
    "float4": float_reader("float4"),
    "float8": float_reader("float8"),
    "bool": read_bool,
    "date": read_date,
    "time": read_time,
    "timestamp": read_timestamp,
    "timestamptz": read_timestamptz,
    "other_number": read_plain_number,
    "other": read_nothing,
}


def column_reader(column: PlanColumn, *, encoding: str) -> Reader:
    """The fast path for a column.

    :param encoding: of the database.
    """
    utf8 = encoding == "UTF8"
    match column.kind:
        case "numeric" if column.precision is not None and column.scale is not None:
            return decimal_reader(column.precision, column.scale)
        case "text":
            return text_reader(column.length, utf8=utf8)
        case "enum":
            return enum_reader(column.labels)
        case "json" | "jsonb":
            return json_reader(utf8=utf8)
        case kind:
            return _READERS[kind]
