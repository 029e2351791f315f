"""Segments and batches are cut at the same places, however the bytes arrive."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_api.dialects.dialect import Dialect, Encoding
from stream_api.errors import Failure
from stream_api.load.cutter import Cutter
from stream_api.load.header import Limits, find_header
from stream_api.load.model import CONTINUED, Batch
from tests.load import reference
from tests.load.test_grammar import any_csv, dialects, in_dialect

PLAIN = Dialect()
encodings = st.sampled_from(["utf-8", "utf-16-le", "utf-16-be", "iso-8859-1", "windows-1252"])
sizes = st.integers(1, 20)


def cut(
    data: bytes,
    *,
    segment_bytes: int = 10**6,
    batch_bytes: int = 10**6,
    pieces: list[int] | None = None,
    start: int = 0,
    line: int = 1,
    max_record_bytes: int = 10**6,
    dialect: Dialect = PLAIN,
    named: bool = True,
) -> list[Batch]:
    cutter = Cutter(
        dialect,
        segment_bytes=segment_bytes,
        batch_bytes=batch_bytes,
        limits=Limits(record=max_record_bytes),
        named=named,
        start=start,
        line=line,
    )
    batches: list[Batch] = []
    position = 0
    for size in pieces or []:
        if cutter.add(data[position : position + size]):
            batches += cutter.cut()
        position += size
    cutter.add(data[position:])
    return batches + cutter.cut(final=True)


def records(batches: list[Batch]) -> list[tuple[int, bytes]]:
    """Start and bytes of each record."""
    return [(start, data) for start, data, _ in readings(batches)]


def readings(batches: list[Batch]) -> list[tuple[int, bytes, str | None]]:
    """Start and bytes of each record, and the code where it is refused; the pieces of a long line are one."""
    found = list[tuple[int, bytes, str | None]]()
    for batch in batches:
        begin = 0
        for number, end in enumerate(batch.ends.tolist()):
            code, data = batch.refused.get(number), batch.data[begin:end]
            if code == CONTINUED:
                start, before, code = found.pop()
                assert start + len(before) == batch.start + begin
                found.append((start, before + data, code))
            else:
                found.append((batch.start + begin, data, code))
            begin = end
    return found


def encoded(body: bytes, dialect: Dialect, encoding: Encoding) -> tuple[bytes, Dialect]:
    """A file in that dialect and encoding, and the dialect with it."""
    text = in_dialect(body, dialect).decode(errors="replace")
    return ("h\n" + text).encode(encoding, "replace"), msgspec.structs.replace(dialect, encoding=encoding)


@settings(deadline=None)
@given(
    body=any_csv,
    segment_bytes=sizes,
    batch_bytes=sizes,
    pieces=st.lists(st.integers(0, 9)),
    dialect=dialects,
    encoding=encodings,
    limit=st.integers(4, 30) | st.just(10**6),
    named=st.booleans(),
)
def test_records_do_not_depend_on_pieces_batches_or_segments(
    *,
    body: bytes,
    segment_bytes: int,
    batch_bytes: int,
    pieces: list[int],
    dialect: Dialect,
    encoding: Encoding,
    limit: int,
    named: bool,
) -> None:
    data, dialect = encoded(body, dialect, encoding)
    whole = cut(data, dialect=dialect, max_record_bytes=limit, named=named)
    batches = cut(
        data,
        segment_bytes=segment_bytes,
        batch_bytes=batch_bytes,
        pieces=pieces,
        dialect=dialect,
        max_record_bytes=limit,
        named=named,
    )
    assert readings(batches) == readings(whole)
    assert b"".join(batch.data for batch in batches) == data
    position, line = 0, 1
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        assert (batch.start, batch.first_line) == (position, line)
        position, line = batch.end, line + batch.lines
        for start, its_line in zip(batch.starts.tolist(), batch.record_lines.tolist(), strict=True):
            before = data[: batch.start + start].decode(encoding, "replace")
            assert its_line == len(re.split("\r\n|\n|\r", before))
        if following is not None:
            assert batch.ends_segment is (following.segment != batch.segment)
    text = re.sub("[^\r\n]", "x", data.decode(encoding))
    assert line == len((text + ".").splitlines())
    for start, record, _ in readings(batches):
        owners = {batch.segment for batch in batches if batch.start < start + len(record) and start < batch.end}
        assert owners == {start // segment_bytes}
    assert batches[0].segment == 0


@given(any_csv, dialects, encodings, st.integers(2, 15))
def test_records_are_those_of_the_plainest_code(body: bytes, dialect: Dialect, encoding: Encoding, limit: int) -> None:
    data, dialect = encoded(body, dialect, encoding)
    text = data.decode(encoding)
    unit = len("x".encode(encoding))
    ours = readings(cut(data, dialect=dialect, max_record_bytes=limit * unit))
    # Limits are of bytes: only where each character has as many can text be asked.
    if len(data) == len(text) * unit:
        expected = reference.read(text[2:], dialect, limit)
        assert [start // unit for start, _, _ in ours] == [record.start + 2 for record in expected]
        assert [code for _, _, code in ours] == [
            "record_too_long" if record.comment and record.end - record.start > limit else record.refused
            for record in expected
        ]


@settings(deadline=None)
@given(
    body=any_csv,
    segment_bytes=sizes,
    pieces=st.lists(st.integers(0, 9)),
    dialect=dialects,
    encoding=encodings,
    limit=st.integers(4, 30) | st.just(10**6),
    draw=st.data(),
)
def test_a_run_of_segments_read_alone_is_cut_the_same(
    *,
    body: bytes,
    segment_bytes: int,
    pieces: list[int],
    dialect: Dialect,
    encoding: Encoding,
    limit: int,
    draw: st.DataObject,
) -> None:
    """As a hole in the ledger is: nothing is known of what follows it."""
    data, dialect = encoded(body, dialect, encoding)
    batches = cut(data, segment_bytes=segment_bytes, dialect=dialect, max_record_bytes=limit)
    segments = sorted({batch.segment for batch in batches if batch.start})
    if not segments:
        return
    first = draw.draw(st.sampled_from(segments))
    last = draw.draw(st.sampled_from([segment for segment in segments if segment >= first]))
    run = [batch for batch in batches if first <= batch.segment <= last and batch.start]
    alone = cut(
        data[run[0].start : run[-1].end],
        start=run[0].start,
        line=run[0].first_line,
        segment_bytes=segment_bytes,
        batch_bytes=5,
        pieces=pieces,
        dialect=dialect,
        max_record_bytes=limit,
    )
    assert readings(alone) == readings(run)
    assert {batch.segment for batch in alone} == {batch.segment for batch in run}
    assert [batch.first_line for batch in alone if batch.start == run[-1].start] in ([run[-1].first_line], [])


@given(any_csv, st.integers(4, 8), st.lists(st.integers(0, 9)))
def test_no_more_is_held_than_the_longest_record_and_a_batch(body: bytes, limit: int, pieces: list[int]) -> None:
    cutter = Cutter(PLAIN, segment_bytes=10, batch_bytes=3, limits=Limits(record=limit, header=limit))
    data = b"h\n" + body
    for size in pieces:
        if cutter.add(data[:size]):
            cutter.cut()
        data = data[size:]
        assert cutter._held <= limit + 3 + size


@pytest.mark.parametrize(
    ("data", "names", "end"),
    [
        (b"a,b\n1,2\n", ["a", "b"], 4),
        (b"\xef\xbb\xbfa,b\n", ["a", "b"], 7),
        (b'\xef\xbb\xbf"a ""x""",b\r\n', ['a "x"', "b"], 16),
        (b"\r\n\n\na\n", ["a"], 6),
        (b"a,,b\n", ["a", "", "b"], 5),
        (b'"a\nb",c\n', ["a\nb", "c"], 8),
    ],
)
def test_header(data: bytes, names: list[str], end: int) -> None:
    limits = Limits()
    assert find_header(data, PLAIN, final=False, limits=limits) == (names, end)
    for cut_at in range(end):
        assert find_header(data[:cut_at], PLAIN, final=False, limits=limits) is None


@pytest.mark.parametrize(
    ("text", "names", "dialect"),
    [
        ("sep=;\r\n\r\nä;b\n", ["ä", "b"], Dialect(delimiter=";", sep_line=True)),
        ('# "\n#\na,b\n', ["a", "b"], Dialect(comment="#")),
        ("'a'\t'b'\n", ["a", "b"], Dialect(delimiter="\t", quote="'")),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "windows-1252"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_header_of_other_dialects(text: str, names: list[str], dialect: Dialect, encoding: Encoding, mark: str) -> None:
    if mark and encoding == "windows-1252":
        return
    data = (mark + text).encode(encoding)
    dialect = msgspec.structs.replace(dialect, encoding=encoding)
    assert find_header(data + b"\0", dialect, final=False, limits=Limits()) == (names, len(data))
    for cut_at in range(len(data)):
        assert find_header(data[:cut_at], dialect, final=False, limits=Limits()) is None


@pytest.mark.parametrize(
    ("data", "code", "limits"),
    [
        (b"abcdefghij\n", "header_too_long", Limits(header=8)),
        (b"abcdefghij", "header_too_long", Limits(header=8)),
        (b"\n\n\n\nabcde\n", "header_too_long", Limits(header=8)),
        (b'a,"b\nc\nd\n', "header_unreadable", Limits(header=8)),
        (b'a,"b\nc"d\n', "header_unreadable", Limits()),
        (b"a,b,c\n", "too_many_columns", Limits(columns=2)),
    ],
)
def test_limits_of_the_header(data: bytes, code: str, limits: Limits) -> None:
    with pytest.raises(Failure) as caught:
        find_header(data, PLAIN, final=False, limits=limits)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("data", "end", "dialect"),
    [
        (b"1,2\n3,4", 0, PLAIN),
        (b"\n1\n", 0, PLAIN),
        (b"#1\n1\n", 0, Dialect(comment="#")),
        (b"\xef\xbb\xbf1\n", 3, PLAIN),
        (b"\xef\xbb\xbfsep=;\r\n1;2\n", 10, Dialect(delimiter=";", sep_line=True)),
        (b"sep=;", 5, Dialect(delimiter=";", sep_line=True)),
        ("\ufeff1\n".encode("utf-16-le"), 2, Dialect(encoding="utf-16-le")),
        (b"", 0, PLAIN),
    ],
)
def test_a_file_without_a_header_begins_with_a_record(data: bytes, end: int, dialect: Dialect) -> None:
    assert find_header(data, dialect, final=True, limits=Limits(), named=False) == ([], end)
    for piece in range(1, len(data) + 1):
        batches = cut(data, pieces=[piece] * len(data), dialect=dialect, named=False, batch_bytes=1)
        assert (batches[0].header, batches[0].end, batches[0].segment) == (data[:end], end, 0)
        assert b"".join(record for _, record in records(batches)) == data[end:]


def test_a_file_without_a_header_may_be_no_text_all_the_same() -> None:
    with pytest.raises(Failure) as caught:
        find_header(b"PK\x03\x04", PLAIN, final=True, limits=Limits(), named=False)
    assert caught.value.code == "encoding_unsupported"


def test_header_without_line_end() -> None:
    assert find_header(b"a,b", PLAIN, final=True, limits=Limits()) == (["a", "b"], 3)
    assert [batch.end for batch in cut(b"a,b")] == [3]


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "header_mismatch"), (b"\n\r\n", "header_mismatch"), ("ä,b\n".encode("latin-1"), "encoding_unsupported"),
     ("a,b\n".encode("utf-16"), "encoding_unsupported")],
)  # fmt: skip
def test_no_header(data: bytes, code: str) -> None:
    with pytest.raises(Failure) as caught:
        find_header(data, PLAIN, final=True, limits=Limits())
    assert caught.value.code == code


def test_a_long_record_is_not_looked_at_again_for_each_piece() -> None:
    cutter = Cutter(PLAIN, segment_bytes=10**6, batch_bytes=10, limits=Limits())
    assert cutter.add(b'h\n"aaaaaaaaaaaaaaaaaa')
    cutter.cut()
    assert not cutter.add(b"a" * 10)
    assert cutter.add(b"a" * 30)
