"""Segments and batches are cut at the same places, however the bytes arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.errors import Failure
from stream_api.load.cutter import Cutter, find_header
from stream_api.load.grammar import Grammar
from stream_api.load.model import Batch
from tests.load.test_grammar import any_csv

GRAMMAR = Grammar()
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
) -> list[Batch]:
    cutter = Cutter(
        GRAMMAR,
        segment_bytes=segment_bytes,
        batch_bytes=batch_bytes,
        max_record_bytes=max_record_bytes,
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
    return [
        (batch.start + begin, batch.data[begin:end])
        for batch in batches
        for begin, end in zip([0, *batch.ends[:-1].tolist()], batch.ends.tolist(), strict=False)
    ]


@given(any_csv, sizes, sizes, st.lists(st.integers(0, 9)))
def test_records_do_not_depend_on_pieces_batches_or_segments(
    body: bytes, segment_bytes: int, batch_bytes: int, pieces: list[int]
) -> None:
    data = b"h\n" + body
    whole = cut(data)
    batches = cut(data, segment_bytes=segment_bytes, batch_bytes=batch_bytes, pieces=pieces)
    assert records(batches) == records(whole)
    assert b"".join(batch.data for batch in batches) == data
    position, line = 0, 1
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        assert (batch.start, batch.first_line) == (position, line)
        position, line = batch.end, line + batch.lines
        if following is not None:
            assert batch.ends_segment is (following.segment != batch.segment)
    for start, _ in records(batches):
        owner = next(batch for batch in batches if batch.start <= start < batch.end)
        assert owner.segment == start // segment_bytes
    assert batches[0].segment == 0


@given(any_csv, sizes, st.data())
def test_a_segment_read_alone_is_cut_the_same(body: bytes, segment_bytes: int, draw: st.DataObject) -> None:
    data = b"h\n" + body
    batches = cut(data, segment_bytes=segment_bytes)
    batch = draw.draw(st.sampled_from(batches))
    if batch.start == 0:
        return
    alone = cut(data[batch.start : batch.end], start=batch.start, line=batch.first_line, segment_bytes=segment_bytes)
    assert records(alone) == records([batch])
    assert {part.segment for part in alone} == {batch.segment}


@given(any_csv, st.integers(2, 8), st.lists(st.integers(0, 9)))
def test_a_long_record_is_found_in_the_same_place(body: bytes, limit: int, pieces: list[int]) -> None:
    data = b"h\n" + body
    long = [start for start, record in records(cut(data)) if len(record) > limit]
    if not long:
        cut(data, max_record_bytes=limit, batch_bytes=3, pieces=pieces)
        return
    with pytest.raises(Failure) as caught:
        cut(data, max_record_bytes=limit, batch_bytes=3, pieces=pieces)
    assert caught.value.code == "record_too_long"
    assert caught.value.extra["line"] == len((data[: long[0]] + b".").splitlines())


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
    assert find_header(data, GRAMMAR, final=False) == (names, end)
    for cut_at in range(end):
        assert find_header(data[:cut_at], GRAMMAR, final=False) is None


def test_header_without_line_end() -> None:
    assert find_header(b"a,b", GRAMMAR, final=True) == (["a", "b"], 3)
    assert [batch.end for batch in cut(b"a,b")] == [3]


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "header_mismatch"), (b"\n\r\n", "header_mismatch"), ("ä,b\n".encode("latin-1"), "encoding_unsupported"),
     ("a,b\n".encode("utf-16"), "encoding_unsupported")],
)  # fmt: skip
def test_no_header(data: bytes, code: str) -> None:
    with pytest.raises(Failure) as caught:
        find_header(data, GRAMMAR, final=True)
    assert caught.value.code == code


def test_a_long_record_is_not_looked_at_again_for_each_piece() -> None:
    cutter = Cutter(GRAMMAR, segment_bytes=10**6, batch_bytes=10, max_record_bytes=10**6)
    assert cutter.add(b'h\n"aaaaaaaaaaaaaaaaaa')
    cutter.cut()
    assert not cutter.add(b"a" * 10)
    assert cutter.add(b"a" * 30)
