"""The grammar against itself, against pyarrow, and by hand."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.csv as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream_api.load.grammar import Grammar, count_lines, line_end_positions

GRAMMAR = Grammar()

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


@given(any_csv, st.booleans())
@example(b'""', True)
@example(b'"a"\r', False)
@example(b'"\r\n"\r\na\r\n', True)
def test_fast_path_agrees_with_the_grammar(data: bytes, final: bool) -> None:
    fast = GRAMMAR._fast_ends(data, final=final)
    if fast is not None:
        assert fast.tolist() == GRAMMAR._exact_ends(data, final=final).tolist()


@given(csv_file)
def test_fast_path_is_taken_for_well_formed_files(data: bytes) -> None:
    if b'5" pipe' not in data and b'x"' not in data and data.count(b"\r") == data.count(b"\r\n"):
        assert GRAMMAR._fast_ends(data, final=True) is not None


@given(any_csv)
def test_records_cover_every_byte(data: bytes) -> None:
    ends = GRAMMAR.record_ends(data, final=True).tolist()
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == len(data)


@given(any_csv, st.data())
def test_a_prefix_gives_a_prefix_of_the_records(data: bytes, draw: st.DataObject) -> None:
    cut = draw.draw(st.integers(0, len(data)))
    whole = GRAMMAR.record_ends(data, final=True).tolist()
    part = GRAMMAR.record_ends(data[:cut], final=False).tolist()
    assert part == whole[: len(part)]


@settings(max_examples=500)
@given(any_csv)
def test_fields_are_those_of_pyarrow(data: bytes) -> None:
    ends = GRAMMAR.record_ends(data, final=True).tolist()
    records = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    if records and not GRAMMAR.is_closed(records[-1]):
        records.pop()  # pyarrow takes an unclosed quote for a valid field
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


@given(any_csv)
def test_lines(data: bytes) -> None:
    assert count_lines(data) == len(line_end_positions(data)) == len((data + b".").splitlines()) - 1
