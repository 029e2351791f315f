"""Buffers of parts are used again, and nobody who still reads one sees what comes into it next."""

from __future__ import annotations

import io
import tracemalloc

from stream_api.config import KIB, MIB
from stream_api.upload.buffers import Buffers

SIZE = 1024


def fill(buffer: io.BytesIO, byte: bytes) -> bytes:
    buffer.write(byte * SIZE)
    return buffer.getvalue()


def test_a_full_one_is_used_again_in_place() -> None:
    buffers = Buffers(SIZE)
    first = buffers.take(SIZE)
    place = id(fill(first, b"a"))
    buffers.give_back(first)
    assert len(buffers) == 1
    again = buffers.take(SIZE)
    assert again is first
    assert len(buffers) == 0
    content = fill(again, b"b")
    assert content == b"b" * SIZE
    assert id(content) == place


def test_who_still_reads_it_reads_what_was_in_it() -> None:
    buffers = Buffers(SIZE)
    first = buffers.take(SIZE)
    sent = io.BytesIO(fill(first, b"a"))
    buffers.give_back(first)
    fill(buffers.take(SIZE), b"b")
    assert sent.read() == b"a" * SIZE


def test_one_that_is_not_full_is_let_go() -> None:
    buffers = Buffers(SIZE)
    last = buffers.take(SIZE)
    last.write(b"a")
    last.truncate(1)
    buffers.give_back(last)
    assert len(buffers) == 0


def test_short_parts_take_no_memory_beside_what_is_left() -> None:
    size, count = 1 * MIB, 8
    buffers = Buffers(size)
    tracemalloc.start()
    try:
        for least_bytes in (size, size - 1, 64 * KIB, size):
            taken = [buffers.take(least_bytes) for _ in range(count)]
            for buffer in taken:
                buffer.write(b"x" * least_bytes)
                buffer.truncate(least_bytes)
                assert buffer.getvalue() == b"x" * least_bytes
                buffers.give_back(buffer)
        # Some for the bytes that were written.
        assert tracemalloc.get_traced_memory()[1] < (count + 2) * size
    finally:
        tracemalloc.stop()


def test_none_is_kept_when_cleared() -> None:
    buffers = Buffers(SIZE)
    one = buffers.take(SIZE)
    fill(one, b"a")
    buffers.give_back(one)
    buffers.clear()
    assert len(buffers) == 0
