"""The header: the names in the first record of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from stream_api.config import MIB, Settings
from stream_api.dialects.dialect import Dialect
from stream_api.errors import Failure
from stream_api.load.encodings import byte_order_mark, recode, shadow, unit_bytes
from stream_api.load.grammar import Grammar
from stream_api.load.model import RECORD_TOO_LONG

#: How files that are often taken for CSV begin; each has a byte that no name of a column can have.
_NOT_TEXT: Final = {
    b"\x1f\x8b": "compressed by gzip",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet (.xlsx)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\xd0\xcf\x11\xe0": "a spreadsheet (.xls)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of what is read, in bytes of the decoded file.

    :param record: a longer record costs its first line.
    :param header: a header that is longer fails the load.
    :param columns: more of them fail the load.
    """

    record: int = MIB
    header: int = MIB
    columns: int = 1600

    @classmethod
    def of(cls, settings: Settings, planned_record_bytes: int | None = None) -> Self:
        """As the settings have them.

        :param planned_record_bytes: what the plan says, by which segments may have been cut already.
        """
        return cls(
            record=planned_record_bytes or settings.max_record_bytes,
            header=settings.max_header_bytes,
            columns=settings.max_columns,
        )

    @property
    def longest(self) -> int:
        """What may have to be held until it is complete."""
        return max(self.record, self.header)


def find_header(
    data: bytes, dialect: Dialect, *, final: bool, limits: Limits, named: bool = True
) -> tuple[list[str], int] | None:
    """The names in the header and the offset just past it, or `None` while `data` does not hold all of it.

    A byte order mark, blank lines, comments and a line for spreadsheets (`sep=;`) before the header are passed over;
    all of it counts for the limit.

    :param data: the beginning of the file.
    :param named: the file has a header. Of one that has none there are no names, and the offset is that of its first
        record, or of a blank line or comment before it.
    :param final: nothing follows `data`.
    :raises Failure: `encoding_unsupported` when the header is not text in its encoding; `header_too_long`,
        `too_many_columns`; `header_unreadable`, for a quote that is not closed; `header_mismatch` when there is none.
    """
    _check_is_text(data)
    mark = byte_order_mark(dialect.encoding)
    if not final and len(data) < len(mark) and mark.startswith(data):
        return None
    start = len(mark) if mark and data.startswith(mark) else 0
    if not named and not dialect.sep_line:
        return [], start
    unit = unit_bytes(dialect.encoding)
    grammar, text = Grammar.of(dialect), shadow(data[start:], dialect.encoding)
    if unit > 1 and len(data) % unit and not final:
        text = text[:-1]
    limit = max(2, (limits.header - start) // unit)
    reading = grammar.read(text, final=final, limit=limit)
    position, to_pass_over = 0, dialect.sep_line
    for number, end in enumerate(reading.ends.tolist()):
        record, begin = text[position:end], position
        position = end
        if end > limit or number in reading.refused:
            raise _refused(reading.refused.get(number, RECORD_TOO_LONG), limits)
        if record in {b"\n", b"\r\n", b"\r"} or grammar.is_comment(record):
            continue
        past = min(start + end * unit, len(data))
        if to_pass_over:
            to_pass_over = False
            if not named:
                return [], past
            continue
        return _names(data[start + begin * unit : past], dialect, grammar, limits), past
    if final and not named:
        return [], len(data)
    if final:
        message = "The file has no header: its first line must name the columns."
        raise Failure("header_mismatch", message, missing=[], unknown=[], repeated=[], generated=[], nearest={})
    if len(text) > limit:
        raise _refused(RECORD_TOO_LONG, limits)
    return None


def _check_is_text(data: bytes) -> None:
    for magic, kind in _NOT_TEXT.items():
        if data.startswith(magic):
            message = f"The file is {kind}, not CSV text. Unpack it and upload the CSV file itself."
            raise Failure("encoding_unsupported", message)


def _names(record: bytes, dialect: Dialect, grammar: Grammar, limits: Limits) -> list[str]:
    names = _decoded(record, dialect, grammar)
    if len(names) > limits.columns:
        detail = (
            f"The header has {len(names)} columns, and {limits.columns} are allowed (STREAM_API_MAX_COLUMNS). "
            "If they are too many, the delimiter may be another: see the form field delimiter."
        )
        raise Failure("too_many_columns", detail, limit=limits.columns)
    return names


def _decoded(record: bytes, dialect: Dialect, grammar: Grammar) -> list[str]:
    text, _, bad = recode(record, np.array([len(record)], np.int64), dialect.encoding)
    fields = grammar.fields(text)
    if not bad.size:
        try:
            return [(value or b"").decode() for value in fields]
        except UnicodeDecodeError:
            pass  # said below
    message = f"The header is not valid {dialect.encoding.upper()}: give its encoding in the form field encoding."
    if record.startswith((b"\xff\xfe", b"\xfe\xff")):
        message = "The file is encoded in UTF-16: give its encoding in the form field encoding."
    raise Failure("encoding_unsupported", message)


def _refused(code: str, limits: Limits) -> Failure:
    if code == RECORD_TOO_LONG:
        detail = (
            f"The header is longer than {limits.header} bytes (STREAM_API_MAX_HEADER_BYTES). Is the file CSV text, "
            "with the names of its columns in the first line?"
        )
        return Failure("header_too_long", detail, limitBytes=limits.header)
    detail = "A quote in the header is opened and not closed, or not closed within the limit for a header."
    return Failure("header_unreadable", detail, limitBytes=limits.header)
