"""Rows are those of the grammar, and whatever is not a row is rejected at its place, for a reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_api.load.grammar import Grammar
from stream_api.load.model import Rejection, Rows
from stream_api.load.parser import Parser, _Parsing
from tests.load.test_cutter import cut, records
from tests.load.test_grammar import any_csv, csv_bytes

GRAMMAR = Grammar()

dirty_csv = st.lists(any_csv | csv_bytes | st.sampled_from([b"\0", b"\xff", b"\xe9", b"a,\0b\n", b"\xc3,a\n"])).map(
    b"".join
)


def parse(body: bytes, columns: int = 2, **limits: Any) -> list[Rows]:
    names = [f"c{number}" for number in range(columns)]
    parser = Parser(GRAMMAR, names)
    return [parser.parse(batch) for batch in cut(",".join(names).encode() + b"\n" + body, **limits)]


def values(parsed: list[Rows]) -> list[tuple[int, int, list[str | None]]]:
    """Line, offset and values of each row."""
    return [
        (line, offset, list(row.values()))
        for rows in parsed
        for line, offset, row in zip(rows.lines.tolist(), rows.offsets.tolist(), rows.table.to_pylist(), strict=True)
    ]


def rejections(parsed: list[Rows]) -> list[Rejection]:
    return [rejection for rows in parsed for rejection in rows.rejections]


def expected(body: bytes, columns: int) -> tuple[list[tuple[int, int, list[str | None]]], list[tuple[int, int, str]]]:
    """What the grammar says, by the plainest code."""
    header = ",".join(f"c{number}" for number in range(columns)).encode() + b"\n"
    data = header + body
    good: list[tuple[int, int, list[str | None]]] = []
    bad: list[tuple[int, int, str]] = []
    for start, record in records(cut(data)):
        if columns > 1 and not record.strip(b"\r\n"):
            continue
        line = len((data[:start] + b".").splitlines())
        fields = GRAMMAR.fields(record)
        if b"\0" in record:
            bad.append((line, start, "nul_byte"))
        elif not GRAMMAR.is_closed(record):
            bad.append((line, start, "unclosed_quote"))
        elif record.decode(errors="ignore").encode() != record:
            bad.append((line, start, "invalid_utf8"))
        elif len(fields) != columns:
            bad.append((line, start, "wrong_field_count"))
        else:
            good.append((line, start, [None if value is None else value.decode() for value in fields]))
    return good, bad


@settings(max_examples=400)
@given(dirty_csv, st.integers(1, 4), st.integers(1, 30), st.integers(1, 30))
def test_rows_and_rejections_are_those_of_the_grammar(body: bytes, columns: int, segment: int, batch: int) -> None:
    good, bad = expected(body, columns)
    parsed = parse(body, columns, segment_bytes=segment, batch_bytes=batch)
    assert values(parsed) == good
    assert [(each.line, each.offset, each.code) for each in rejections(parsed)] == bad
    assert sum(rows.read for rows in parsed) == len(good) + len(bad)


@given(any_csv, st.integers(1, 3))
def test_both_parsers_agree(body: bytes, columns: int) -> None:
    for batch in cut(b"h\n" + body):
        by_arrow, exactly = (
            _Parsing(GRAMMAR, Parser(GRAMMAR, [str(n) for n in range(columns)])._schema, batch) for _ in "12"
        )
        by_arrow._reject_unreadable()
        exactly._reject_unreadable()
        table = by_arrow._parse_with_arrow()
        if table is not None:
            assert table.equals(exactly._parse_exactly())
            assert by_arrow.rejected == exactly.rejected
            assert by_arrow.kept.tolist() == exactly.kept.tolist()


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (b"a\n", "wrong_field_count", "The record has 1 fields where the header has 2"),
        (b"a,b,c\n", "wrong_field_count", "The record has 3 fields where the header has 2"),
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


def test_null_and_empty() -> None:
    assert [row for _, _, row in values(parse(b',""\n"",\n"",'))] == [[None, ""], ["", None], ["", None]]
    assert [row for _, _, row in values(parse(b'\n""\na\n', columns=1))] == [[None], [""], ["a"]]
