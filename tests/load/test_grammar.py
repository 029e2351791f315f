"""The grammar against itself, against pyarrow, and by hand."""

from __future__ import annotations

import itertools

import pyarrow as pa
import pyarrow.csv as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream_api.dialects.dialect import Dialect
from stream_api.load.grammar import Grammar, Reading, _Exactly, count_lines, line_end_positions
from stream_api.load.model import CONTINUED
from tests.load import reference

GRAMMAR = Grammar()

DIALECTS = [
    Dialect(),
    Dialect(delimiter=";", quote="'"),
    Dialect(delimiter="\t", quote=None),
    Dialect(escape="backslash"),
    Dialect(comment="#"),
    Dialect(delimiter="|", escape="backslash", comment="a"),
]
dialects = st.sampled_from(DIALECTS)

#: Few letters, so that quotes, delimiters and line ends meet in every way.
csv_bytes = st.lists(st.sampled_from([b"a", b",", b'"', b'""', b"\n", b"\r", b"\r\n", "é".encode()])).map(b"".join)
#: Mostly well-formed fields, so that the fast path is taken as well.
csv_field = st.one_of(
    st.sampled_from([b"", b"a", b"bc", b'5" pipe', b'x"']),
    st.lists(st.sampled_from([b"a", b",", b'""', b"\n", b"\r\n"])).map(lambda parts: b'"' + b"".join(parts) + b'"'),
)
csv_record = st.lists(csv_field, min_size=1, max_size=4).map(b",".join)
csv_file = st.tuples(st.lists(csv_record, max_size=8), st.sampled_from([b"\n", b"\r\n"])).map(
    lambda made: b"".join(record + made[1] for record in made[0])
)
any_csv = csv_bytes | csv_file
#: The fast path looks at 64 bytes at once: what is odd has to lie at every place in them, and beside their ends.
csv_filling = st.integers(0, 70).map(lambda size: b"a" * size)
far_apart = st.lists(any_csv | csv_field | csv_filling | csv_filling.map(lambda text: b'"' + text + b'"')).map(b"".join)


def in_dialect(data: bytes, dialect: Dialect) -> bytes:
    """Comma, quote and `#` are those of the dialect; some doubled quotes are escaped by a backslash."""
    data = data.replace(b'"', (dialect.quote or '"').encode()).replace(b",", dialect.delimiter.encode())
    if dialect.escape == "backslash":
        data = data.replace(b'""', b'\\"').replace(b"bc", b"\\\\").replace(b"\xc3\xa9", b"\\")
    return data if dialect.comment is None else data.replace(b"\na", b"\n" + dialect.comment.encode())


def exactly(grammar: Grammar, data: bytes, *, final: bool, limit: int = 10**6) -> Reading:
    """As `Grammar.read`, without the fast path."""
    return _Exactly(grammar, data, final=final, limit=limit).reading()


@settings(max_examples=1000, deadline=None)
@given(any_csv, dialects, st.integers(2, 30))
@example(b'"a\n"b\n', Dialect(), 30)
@example(b'"a\n"\r\n,"\nb', Dialect(), 30)
@example(b"#aaaaaaaaa\n", Dialect(comment="#"), 2)
def test_the_reading_is_that_of_the_plainest_code(data: bytes, dialect: Dialect, limit: int) -> None:
    data = in_dialect(data, dialect)
    grammar = Grammar.of(dialect)
    reading = grammar.read(data, final=True, limit=limit)
    assert not reading.in_line
    assert reading.ends.tolist() == exactly(grammar, data, final=True, limit=limit).ends.tolist()
    # Each line ends within a record, at its end, or not at all.
    lines = line_end_positions(data) + 1
    assert reading.inner.tolist() == sorted(set(lines.tolist()) - set(reading.ends.tolist()))
    expected = reference.read(data.decode("latin-1"), dialect, limit)
    ends = [end for number, end in enumerate(reading.ends.tolist()) if reading.refused.get(number + 1) != CONTINUED]
    assert ends == [record.end for record in expected]
    begins = [0, *reading.ends.tolist()]
    refused = {begins[number]: code for number, code in reading.refused.items() if code != CONTINUED}
    comments = {record.start for record in expected if record.comment}
    assert {start: code for start, code in refused.items() if start not in comments} == {
        record.start: record.refused for record in expected if record.refused
    }
    for record in expected:
        if record.refused is None and not record.comment:
            found = grammar.fields(data[record.start : record.end])
            assert [None if each is None else each.decode("latin-1") for each in found] == record.fields


@given(any_csv, dialects, st.integers(2, 12), st.data())
def test_what_is_decided_stays_decided(data: bytes, dialect: Dialect, limit: int, draw: st.DataObject) -> None:
    data = in_dialect(data, dialect)
    grammar = Grammar.of(dialect)
    cut = draw.draw(st.integers(0, len(data)))
    whole, part = (
        grammar.read(data, final=True, limit=limit),
        grammar.read(data[:cut], final=False, limit=limit),
    )
    decided = part.ends.tolist()
    assert cut - (decided[-1] if decided else 0) <= limit
    if part.in_line and part.refused.get(len(decided) - 1) == CONTINUED:
        decided.pop()  # where the rest of a long line ends here is a matter of the cut
    assert decided == whole.ends.tolist()[: len(decided)]
    assert {number: code for number, code in part.refused.items() if number < len(decided)} == {
        number: code for number, code in whole.refused.items() if number < len(decided)
    }


@settings(max_examples=1000, deadline=None)
@given(any_csv | far_apart, dialects, st.booleans())
@example(b'""', Dialect(), True)
@example(b'"a"\r', Dialect(), False)
@example(b'"a"\r', Dialect(), True)
@example(b'"\r\n"\r\na\r\n', Dialect(), True)
def test_fast_path_agrees_with_the_grammar(data: bytes, dialect: Dialect, final: bool) -> None:
    data = in_dialect(data, dialect)
    grammar = Grammar.of(dialect)
    fast = grammar._read_fast(data, final=final)
    if fast is not None:
        reading = exactly(grammar, data, final=final)
        assert (fast.ends.tolist(), fast.inner.tolist()) == (reading.ends.tolist(), reading.inner.tolist())
        assert not reading.refused


@given(csv_file)
def test_fast_path_is_taken_for_well_formed_files(data: bytes) -> None:
    if b'5" pipe' not in data and b'x"' not in data and data.count(b"\r") == data.count(b"\r\n"):
        assert GRAMMAR._read_fast(data, final=True) is not None


@given(any_csv)
def test_records_cover_every_byte(data: bytes) -> None:
    ends = GRAMMAR.record_ends(data, final=True).tolist()
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(data)


@settings(max_examples=500, deadline=None)
@given(any_csv)
def test_fields_are_those_of_pyarrow(data: bytes) -> None:
    reading = GRAMMAR.read(data, final=True, limit=10**6)
    ends = reading.ends.tolist()
    records = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    records = [record for number, record in enumerate(records) if number not in reading.refused]
    data = b"".join(records)
    ours = [GRAMMAR.fields(record) for record in records if record.strip(b"\r\n")]
    for width in {len(fields) for fields in ours}:
        assert _pyarrow_rows(data, width) == [
            [None if value is None else value.decode() for value in fields] for fields in ours if len(fields) == width
        ]


def _pyarrow_rows(data: bytes, width: int) -> list[list[str | None]]:
    # Without a last line end pyarrow reads the empty last field of `"",` as quoted: the parser adds one as well.
    data = data if data.endswith((b"\r", b"\n")) else data + b"\n"
    names = [str(number) for number in range(width)]
    table = pc.read_csv(
        pa.BufferReader(data),  # type: ignore[arg-type]  # any file of Arrow's will do
        read_options=pc.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
        parse_options=pc.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip"),
        convert_options=pc.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )
    return [list(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (b"a,b\n", [b"a", b"b"]),
        (b"\n", [None]),
        (b',""\r\n', [None, b""]),
        (b'"a""b"', [b'a"b']),
        (b'"a"b,c', [b"ab", b"c"]),
        (b'"a"b"c",d', [b'ab"c"', b"d"]),
        (b'5" pipe,6" pipe\n', [b'5" pipe', b'6" pipe']),
        (b'"a\r\nb",c\r', [b"a\r\nb", b"c"]),
        (b'"a,b\n', [b"a,b\n"]),
        (b'""""', [b'"']),
        (b" \"a\",'b'", [b' "a"', b"'b'"]),
    ],
)
def test_fields(record: bytes, fields: list[bytes | None]) -> None:
    assert GRAMMAR.fields(record) == fields


@pytest.mark.parametrize(
    ("record", "closed"), [(b'"a"\n', True), (b'"a\n', False), (b'a"\n', True), (b'"a""\n', False)]
)
def test_is_closed(record: bytes, closed: bool) -> None:
    assert GRAMMAR.is_closed(record) is closed


@pytest.mark.parametrize("delimiter", [b";", b"\t", b"|", b"^", b"]", b"-"])
def test_other_delimiters(delimiter: bytes) -> None:
    grammar = Grammar(delimiter=delimiter)
    assert grammar.fields(b'"x' + delimiter + b'y"' + delimiter + b"z,w\n") == [b"x" + delimiter + b"y", b"z,w"]
    assert grammar.record_ends(b"a" + delimiter + b"b\nc", final=True).tolist() == [4, 5]


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (rb'"a\"b",c', [b'a"b', b"c"]),
        (rb'"a\\",c', [b"a\\", b"c"]),
        (rb'"C:\new",\N', [rb"C:\new", rb"\N"]),
        (rb'"a""b","\""', [b'a"b', b'"']),
        (rb"a\"b,\"c\"", [rb"a\"b", rb"\"c\""]),
        (rb'"a\""b"', [rb'a"b"']),
    ],
)
def test_escape_by_backslash(record: bytes, fields: list[bytes]) -> None:
    assert Grammar(backslash=True).fields(record) == fields


@given(csv_file, st.sampled_from([dialect for dialect in DIALECTS if dialect.escape == "backslash"]))
@example(b'5" pipe,"\n', DIALECTS[3])
@example(b'"a""bc"x,x"\n"bc"', DIALECTS[3])
def test_escapes_by_doubling_mean_the_same(data: bytes, dialect: Dialect) -> None:
    data = in_dialect(data, dialect)
    backslash = Grammar.of(dialect)
    reading = backslash.read(data, final=True, limit=10**6)
    ends = [0, *reading.ends.tolist()]
    records = [data[start:end] for start, end in itertools.pairwise(ends)]
    kept = [each for number, each in enumerate(records) if number not in reading.refused]
    if dialect.comment is not None:
        kept = [each for each in kept if not backslash.is_comment(each)]
    doubling = Grammar(delimiter=backslash.delimiter)
    made = doubling.read(backslash.doubled(b"".join(kept)), final=True, limit=10**6)
    assert not made.refused
    ends = [0, *made.ends.tolist()]
    again = [backslash.doubled(b"".join(kept))[start:end] for start, end in itertools.pairwise(ends)]
    assert [doubling.fields(each) for each in again] == [backslash.fields(each) for each in kept]


def test_without_a_quote_every_field_is_plain() -> None:
    grammar = Grammar(delimiter=b"\t", quote=b"")
    assert grammar.record_ends(b'"a\t"\n"b\n', final=True).tolist() == [5, 8]
    assert grammar.fields(b'"a\t""\n') == [b'"a', b'""']


@pytest.mark.parametrize(
    ("data", "ends", "refused"),
    [
        # A stray quote costs its line, whether a later quote closes it or nothing does.
        (b'a,"b\nc,d\n"e","f"\n', [5, 9, 17], {0: "unclosed_quote"}),
        (b'a,"b\nc,d\ne,f\n', [5, 9, 13], {0: "unclosed_quote"}),
        # A field of several lines is none.
        (b'a,"b\nc"\ne,f\n', [8, 12], {}),
        # The quote that is not closed is the second one of its line.
        (b'"a","b\n"c","d"\n', [7, 15], {0: "unclosed_quote"}),
        # Each line has one.
        (b'"a\n"b\n"c\n', [3, 6, 9], {0: "unclosed_quote", 1: "unclosed_quote", 2: "unclosed_quote"}),
    ],
)
def test_a_stray_quote_costs_its_line(data: bytes, ends: list[int], refused: dict[int, str]) -> None:
    reading = GRAMMAR.read(data, final=True, limit=10**6)
    assert (reading.ends.tolist(), reading.refused) == (ends, refused)


dirty_row = st.lists(
    st.sampled_from([b"", b'""', b"plain", b'"a, b"', b'"two\nlines"', b'"{""a"": 1}"', b'5" pipe']),
    min_size=3,
    max_size=3,
).map(b",".join)


@settings(max_examples=500, deadline=None)
@given(st.lists(dirty_row, min_size=5, max_size=20), st.data())
def test_a_damaged_byte_costs_its_row_and_those_beside_it(made: list[bytes], draw: st.DataObject) -> None:
    rows = [b"%d,%b\n" % (number, row) for number, row in enumerate(made)]
    damaged = draw.draw(st.integers(0, len(rows) - 1))
    position = draw.draw(st.integers(0, len(rows[damaged]) - 1))
    put = draw.draw(st.sampled_from([b"", b'"', b'""', b",", b"\n", b"\r", b"x"]))
    instead = draw.draw(st.booleans())
    row = rows[damaged]
    data = b"".join([*rows[:damaged], row[:position], put, row[position + instead :], *rows[damaged + 1 :]])
    reading = GRAMMAR.read(data, final=True, limit=10**6)
    ends = [0, *reading.ends.tolist()]
    found = {
        data[start:end] for number, (start, end) in enumerate(itertools.pairwise(ends)) if number not in reading.refused
    }
    assert {row for number, row in enumerate(rows) if abs(number - damaged) > 1} <= found


@pytest.mark.parametrize(
    "line",
    [
        b'x",y,"z\n',
        b'"abc,def\n',
        b'a,"b\n',
        b'"""\n',
        b'a,""b,"c""d\n',
        b'"' + b'""' * 8 + b"\n",
        b'x,"\n' + b"y\n" * 20,
    ],
)
def test_a_file_of_quotes_is_read_in_linear_time(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    closed, after = Grammar.is_closed, Grammar.after

    def is_closed(self: Grammar, data: bytes, start: int = 0, end: int | None = None) -> bool:
        nonlocal looked_at
        looked_at += (len(data) if end is None else end) - start
        return closed(self, data, start, end)

    def counted(self: Grammar, data: bytes, start: int, end: int) -> str:
        nonlocal looked_at
        looked_at += end - start
        return after(self, data, start, end)

    monkeypatch.setattr(Grammar, "is_closed", is_closed)
    monkeypatch.setattr(Grammar, "after", counted)
    data = line * 5000
    exactly(GRAMMAR, data, final=True, limit=10**9)
    assert 0 < looked_at <= 2 * len(data)
    looked_at = 0
    exactly(GRAMMAR, data, final=True, limit=1000)
    assert 0 < looked_at <= 2 * len(data)


@given(any_csv)
def test_lines(data: bytes) -> None:
    assert count_lines(data) == len(line_end_positions(data)) == len((data + b".").splitlines()) - 1
