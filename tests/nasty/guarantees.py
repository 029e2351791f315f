"""What must be true of a damaged file's load, whatever the damage."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from stream_api.dialects.dialect import Dialect
from stream_api.ledger.rows import UploadRow
from stream_api.load.encodings import shadow, unit_bytes
from stream_api.load.header import Limits, find_header
from tests.load import reference
from tests.nasty.mutations import COLUMNS, Damage, File

#: What a load may fail with, and only where its header is damaged.
HEADER_CODES: Final = {
    "header_mismatch",
    "header_unreadable",
    "header_too_long",
    "encoding_unsupported",
    "too_many_columns",
}
#: And only where a compressed file is.
COMPRESSION_CODES: Final = {"compression_invalid", "compression_truncated", "compression_window", "expansion_too_large"}
#: Codes that say what is wrong with a record; all others are about a value of a row.
_OF_RECORDS: Final = {
    "unclosed_quote",
    "record_too_long",
    "nul_byte",
    "invalid_utf8",
    "invalid_encoding",
    "wrong_field_count",
}
_LINE_END: Final = re.compile(r"\r\n|\n|\r")
#: Columns of text: what the file says is what the table shows.
_TEXTS: Final = (1, 3, 5)


@dataclass
class Found:
    """What became of a load.

    :param rows: of the table, every value as text, in the order of `COLUMNS`.
    :param rejects: as `GET /upload/{id}/rejects` has them.
    """

    row: UploadRow
    rows: list[tuple[str | None, ...]]
    rejects: list[dict[str, str]]


@dataclass
class Read:
    """The records of a damaged file, by the plainest code.

    :param data: decompressed.
    :param good: fields of those that are rows, by their offsets.
    :param bad: line and code of the others.
    :param ends: of both, and of what is neither.
    """

    data: bytes
    dialect: Dialect
    names: list[str]
    good: dict[int, list[str | None]] = field(default_factory=dict)
    bad: dict[int, tuple[int, str]] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)

    def line(self, offset: int) -> int:
        """The line on which this byte lies."""
        return 1 + len(_LINE_END.findall(shadow(self.data[:offset], self.dialect.encoding).decode("latin-1")))


def check_sums(found: Found) -> None:
    """Every row is somewhere, and counted once."""
    row = found.row
    assert row.state in {"completed", "failed"}
    assert row.rows_read == row.rows_processed + row.rows_failed
    assert row.rows_processed == row.rows_inserted == len(found.rows)
    assert row.rows_failed == len(found.rejects)
    offsets = [int(each["byteOffset"]) for each in found.rejects]
    assert offsets == sorted(set(offsets)), "rejections out of order, or twice"


def check_records(found: Found, read: Read, *, keyed: bool) -> None:
    """Rows and rejections are those of the grammar, record by record.

    :param read: of the file as it was stored, decompressed.
    :param keyed: the table refuses rows with a key that it has.
    """
    assert found.row.rows_read == len(read.good) + len(read.bad)
    loaded = dict(read.good)
    for each in found.rejects:
        offset, line, code = int(each["byteOffset"]), int(each["line"]), each["code"]
        record = read.data[offset : read.ends[offset]]
        if code in _OF_RECORDS:
            assert read.bad.pop(offset) == (line, code)
        else:
            assert keyed or code != "duplicate_key"
            del loaded[offset]
            assert line == read.line(offset)
        said = base64.b64decode(each["record"]) if each["encoding"] == "base64" else each["record"].encode()
        if code == "record_too_long":  # it is cut off, and what is left of a line end follows
            said = said.removesuffix(b"\n\0").removesuffix(b"\0")
        assert record.startswith(said)
        assert code == "record_too_long" or not record[len(said) :].strip(b"\r\n\0")
    assert read.bad == {}
    if [name.strip().casefold() for name in read.names] == list(COLUMNS):
        expected = Counter(tuple(fields[number] for number in _TEXTS) for fields in loaded.values())
        assert expected == Counter(tuple(row[number] for number in _TEXTS) for row in found.rows)


def check_untouched(
    rows: Sequence[tuple[str | None, ...]],
    refused: Mapping[int, str],
    file: File,
    damage: Damage,
    read: Read,
    *,
    keyed: bool,
) -> None:
    """Rows that were neither damaged nor beside one that was are in the table, as they were.

    There is one thing that may take them away: a quote that damage has put before a field (or deprived of its partner),
    and that is closed by another one, lines later, with a delimiter or a line end after it. So the record that has
    swallowed a row begins where there is damage (or in what another such record has left behind), and ends where there
    is damage or in a field whose opening quote has a delimiter or line end, or the like, after it. Where nothing in the
    file is like that and there is damage at one place only, nothing is ever swallowed.

    :param rows: of the table.
    :param refused: codes of the rejections, by their offsets.
    """
    if file.encoding.startswith("utf-16") and any((end - start - len(put)) % 2 for start, end, put in damage.edits):
        return  # the rest of the file is other text
    left = Counter(rows)
    touched = {number for number, record in enumerate(file.records) if damage.touches(record)}
    beside = {number + step for number in touched for step in (-1, 0, 1)}
    in_header = any(start < len(file.header) for start, _, _ in damage.edits)
    if in_header:
        beside.add(0)
    starts = sorted(read.ends)
    disturbed = set(beside)
    for number, record in enumerate(file.records):
        if number in beside:
            continue
        start = damage.moved(record.start)
        if start in read.ends:
            # Whatever was before it, it is read from its beginning.
            assert start in read.good, f"row {number} is lost"
            assert read.ends[start] == start + len(record.data), f"row {number} is another"
            if keyed and refused.get(start) == "duplicate_key":
                assert any(row[0] == record.values[0] for row in rows)
                continue
            assert start not in refused, f"row {number} is refused: {refused[start]}"
            assert left[record.values], f"row {number} is not in the table as it was"
            left[record.values] -= 1
            continue
        swallower = max((each for each in starts if each < start), default=None)
        if swallower is None:
            assert in_header, f"row {number} is lost in the header"
            continue
        first = _at(file, damage, swallower)
        last = _at(file, damage, read.ends[swallower] - 1)
        assert first is None or first in disturbed, f"row {number} is lost: swallowed from row {first} on"
        assert last is None or last in touched or file.records[last].tempting, f"row {number} is lost: up to {last}"
        disturbed.add(number)


def _at(file: File, damage: Damage, position: int) -> int | None:
    """The record that has this byte of the damaged file, `None` for one that was put in."""
    for number, record in enumerate(file.records):
        if damage.touches(record):
            begin = damage.moved(file.records[number - 1].end) if number else 0
            following = file.records[number + 1 :]
            end = next((damage.moved(each.start) for each in following if not damage.touches(each)), len(damage.data))
        else:
            begin, end = damage.moved(record.start), damage.moved(record.start) + len(record.data)
        if begin <= position < end:
            return number
    return None


def read_file(data: bytes, dialect: Dialect, limit: int) -> Read:
    """The records of a file, whose header is one."""
    found = find_header(data, dialect, final=True, limits=Limits())
    assert found is not None
    names, first = found
    unit = unit_bytes(dialect.encoding)
    read = Read(data, dialect, names)
    text = shadow(data[first:], dialect.encoding).decode("latin-1")
    for record in reference.read(text, dialect, limit // unit):
        start, end = first + record.start * unit, min(first + record.end * unit, len(data))
        read.ends[start] = end
        seen = text[record.start : record.end]
        if not seen.strip("\r\n") and len(names) > 1:
            continue
        code, fields = record.refused, list[str | None]()
        if code is None and "\0" in seen:
            code = "nul_byte"
        elif code is None:
            code, fields = _fields(data[start:end], dialect, len(names))
        if code is None:
            read.good[start] = fields
        else:
            read.bad[start] = read.line(start), code
    return read


def _fields(record: bytes, dialect: Dialect, width: int) -> tuple[str | None, list[str | None]]:
    """The fields of a record, or what is wrong with it."""
    try:
        text = record.decode("cp1252" if dialect.encoding == "windows-1252" else dialect.encoding)
    except UnicodeDecodeError:
        return "invalid_utf8" if dialect.encoding == "utf-8" else "invalid_encoding", []
    fields = reference.read_record(text, 0, dialect).fields
    return None if len(fields) == width else "wrong_field_count", fields


def describe(file: File, damage: Damage) -> dict[str, Any]:
    """What somebody who looks into a failure wants to see first."""
    return {"encoding": file.encoding, "edits": damage.edits, "data": damage.data}
