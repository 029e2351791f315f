"""Rows are those of the grammar, and whatever is not a row is rejected at its place, for a reason."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_api.dialects.dialect import Dialect, Encoding
from stream_api.load.flaws import Flaw, Flaws
from stream_api.load.model import Rows
from stream_api.load.parser import Parser, _Parsing
from stream_api.load.rejects import Rejection
from tests.load import reference
from tests.load.test_cutter import PLAIN, cut, encodings
from tests.load.test_grammar import any_csv, csv_bytes, dialects, in_dialect

dirty_csv = st.lists(any_csv | csv_bytes | st.sampled_from([b"\0", b"\xff", b"\xe9", b"a,\0b\n", b"\xc3,a\n"])).map(
    b"".join
)


def parse(body: bytes, columns: int = 2, dialect: Dialect = PLAIN, **limits: Any) -> list[Rows]:
    names = [f"c{number}" for number in range(columns)]
    parser = Parser(dialect, names)
    header = f"{dialect.delimiter.join(names)}\n".encode(dialect.encoding)
    return [parser.parse(batch) for batch in cut(header + body, dialect=dialect, **limits)]


def values(parsed: list[Rows]) -> list[tuple[int, int, list[str | None]]]:
    """Line, offset and values of each row."""
    return [
        (line, offset, list(row.values()))
        for rows in parsed
        for line, offset, row in zip(rows.lines.tolist(), rows.offsets.tolist(), rows.table.to_pylist(), strict=True)
    ]


def found(flaws: Flaws) -> list[tuple[int, Flaw]]:
    return list(zip(flaws.records.tolist(), flaws.of(flaws.records), strict=True))


def rejections(parsed: list[Rows]) -> list[Rejection]:
    return [rejection for rows in parsed for rejection in rows.rejections(rows.flaws)]


def expected(
    body: bytes, columns: int, dialect: Dialect, limit: int
) -> tuple[list[tuple[int, int, list[str | None]]], list[tuple[int, int, str]]]:
    """What the grammar says, by the plainest code; each byte of the body is taken for a character."""
    header = dialect.delimiter.join(f"c{number}" for number in range(columns)) + "\n"
    text = body.decode("latin-1")
    good: list[tuple[int, int, list[str | None]]] = []
    bad: list[tuple[int, int, str]] = []
    for record in reference.read(text, dialect, limit):
        raw = text[record.start : record.end]
        if record.comment or (columns > 1 and not raw.strip("\r\n")):
            continue
        line = len((header + text[: record.start] + ".").encode("latin-1").splitlines())
        start = len(header) + record.start
        if record.refused is not None:
            bad.append((line, start, record.refused))
        elif "\0" in raw:
            bad.append((line, start, "nul_byte"))
        elif not is_text(raw.encode("latin-1"), dialect.encoding):
            bad.append((line, start, "invalid_utf8" if dialect.encoding == "utf-8" else "invalid_encoding"))
        elif len(record.fields) != columns:
            bad.append((line, start, "wrong_field_count"))
        else:
            fields = [None if value is None else value.encode("latin-1") for value in record.fields]
            good.append((line, start, [None if each is None else each.decode(dialect.encoding) for each in fields]))
    return good, bad


def is_text(data: bytes, encoding: Encoding) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


@settings(max_examples=600, deadline=None)
@given(
    body=dirty_csv,
    columns=st.integers(1, 4),
    segment=st.integers(1, 30),
    batch=st.integers(1, 30),
    dialect=dialects,
    encoding=st.sampled_from(["utf-8", "iso-8859-1", "windows-1252"]),
    limit=st.integers(2, 40) | st.just(10**6),
)
def test_rows_and_rejections_are_those_of_the_grammar(
    *, body: bytes, columns: int, segment: int, batch: int, dialect: Dialect, encoding: Encoding, limit: int
) -> None:
    body, dialect = in_dialect(body, dialect), msgspec.structs.replace(dialect, encoding=encoding)
    good, bad = expected(body, columns, dialect, limit)
    parsed = parse(body, columns, dialect, segment_bytes=segment, batch_bytes=batch, max_record_bytes=limit)
    assert values(parsed) == good
    assert [(each.line, each.offset, each.code) for each in rejections(parsed)] == bad
    assert sum(rows.read for rows in parsed) == len(good) + len(bad)


@settings(deadline=None)
@given(
    st.lists(any_csv | st.sampled_from([b"\0", "\U0001f600€".encode(), b"x,y\n"])).map(b"".join),
    dialects,
    encodings,
    st.integers(1, 30),
    st.lists(st.integers(0, 9)),
)
def test_the_same_text_gives_the_same_rows_in_every_encoding(
    body: bytes, dialect: Dialect, encoding: Encoding, batch: int, pieces: list[int]
) -> None:
    text = in_dialect(body, dialect).decode(errors="replace")
    text = text.encode(encoding, "ignore").decode(encoding)
    as_utf8 = parse(text.encode(), dialect=dialect)
    dialect = msgspec.structs.replace(dialect, encoding=encoding)
    parsed = parse(text.encode(encoding), dialect=dialect, batch_bytes=batch, pieces=pieces)
    assert [(line, row) for line, _, row in values(parsed)] == [(line, row) for line, _, row in values(as_utf8)]
    assert [(each.line, each.code) for each in rejections(parsed)] == [
        (each.line, each.code) for each in rejections(as_utf8)
    ]
    file = "c0,c1\n".replace(",", dialect.delimiter) + text
    for line, offset, _ in values(parsed):
        before = file.encode(encoding)[:offset].decode(encoding)
        assert len(re.split("\r\n|\n|\r", before)) == line


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        ("a,b\n".encode("utf-16-le") + b"\x00\xd8,\0b\0\n\0" + "c,d\n".encode("utf-16-le"), 1),
        ("a,b\n".encode("utf-16-le") + b"\x00\xdc,\0\x01\xd8\x01\xd8\n\0" + "c,d\n".encode("utf-16-le"), 1),
        ("a,b\nc,d\n".encode("utf-16-le") + b"e\0,\0f", 1),
        ("a,b\nc,\U0001f600\n".encode("utf-16-le") + b"\x3d", 1),
    ],
)
def test_what_is_no_utf16_costs_its_record(body: bytes, reasons: int) -> None:
    parsed = parse(body, dialect=Dialect(encoding="utf-16-le"))
    assert [each.code for each in rejections(parsed)] == ["invalid_encoding"] * reasons
    assert len(values(parsed)) == 2


def test_bytes_without_a_meaning_in_windows_1252() -> None:
    parsed = parse(b"\x80,\x93\n\x81,b\nc,\xff\n", dialect=Dialect(encoding="windows-1252"))
    assert [row for _, _, row in values(parsed)] == [["€", "“"], ["c", "ÿ"]]
    assert [(each.line, each.code) for each in rejections(parsed)] == [(3, "invalid_encoding")]


@settings(deadline=None)
@given(any_csv, st.integers(1, 3), dialects)
def test_both_parsers_agree(body: bytes, columns: int, dialect: Dialect) -> None:
    for batch in cut(b"h\n" + in_dialect(body, dialect), dialect=dialect):
        parser = Parser(dialect, [str(n) for n in range(columns)])
        by_arrow, exactly = (_Parsing(parser, batch) for _ in "12")
        by_arrow._reject_unreadable()
        exactly._reject_unreadable()
        table = by_arrow._parse_with_arrow()
        if table is not None:
            assert table.equals(exactly._parse_exactly())
            assert found(by_arrow.flaws) == found(exactly.flaws)
            assert by_arrow.kept.tolist() == exactly.kept.tolist()


def test_a_long_value_costs_its_record() -> None:
    parser = Parser(PLAIN, [" A ", "b"], max_value_bytes=3)
    rows = [parser.parse(batch) for batch in cut(b"a,b\n123,\n1234,12345\n12,123\n,\xc3\xa9\xc3\xa9\n")]
    assert [row for _, _, row in values(rows)] == [["123", None], ["12", "123"]]
    assert [(each.line, each.column, each.code) for each in rejections(rows)] == [
        (3, " A ", "value_too_long"),
        (5, "b", "value_too_long"),
    ]


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (b"a\n", "wrong_field_count", "The record has 1 fields where 2 are expected"),
        (b"a,b,c\n", "wrong_field_count", "The record has 3 fields where 2 are expected"),
        (b"a,\0\n", "nul_byte", "NUL"),
        (b"a,\xff\n", "invalid_utf8", "0xff"),
        (b'a,"b\n', "unclosed_quote", "not closed"),
    ],
)
def test_a_bad_record_between_good_ones(body: bytes, code: str, reason: str) -> None:
    parsed = parse(b'x,y\n"1\n2",z\n' + body + (b"" if code == "unclosed_quote" else b"v,w\n"))
    assert [row for _, _, row in values(parsed)][:2] == [["x", "y"], ["1\n2", "z"]]
    assert len(values(parsed)) == (2 if code == "unclosed_quote" else 3)
    (rejection,) = rejections(parsed)
    assert (rejection.line, rejection.code) == (5, code)
    assert reason in rejection.reason


def test_a_byte_order_mark_is_a_character_wherever_a_batch_begins() -> None:
    for batch in (1, 10**6):
        parsed = parse("\ufeffa,\ufeff\n\ufeff\ufeff,b\n".encode(), batch_bytes=batch)
        assert [row for _, _, row in values(parsed)] == [["\ufeffa", "\ufeff"], ["\ufeff\ufeff", "b"]]


def test_null_and_empty() -> None:
    assert [row for _, _, row in values(parse(b',""\n"",\n"",'))] == [[None, ""], ["", None], ["", None]]
    assert [row for _, _, row in values(parse(b'\n""\na\n', columns=1))] == [[None], [""], ["a"]]
