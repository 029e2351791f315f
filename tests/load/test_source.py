"""A compressed file by its ranges: the same bytes as of the file itself, whatever the pieces."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_api.dialects.compression import Inflater
from stream_api.dialects.dialect import Compression, Dialect
from stream_api.errors import Failure
from stream_api.load.header import Limits
from stream_api.load.reader import UNKNOWN_END
from stream_api.load.source import Source, _Decoding
from tests.load.conftest import Loading

Result = TypeVar("Result")
CONTENT = bytes(range(256)) * 4


async def at_once(function: Callable[..., Result], /, *args: object) -> Result:
    return function(*args)


def decoding(data: bytes, compression: Compression, piece_bytes: int) -> _Decoding:
    async def stored() -> AsyncIterator[bytes]:
        for start in range(0, len(data), piece_bytes):
            yield data[start : start + piece_bytes]

    return _Decoding(stored(), Inflater(compression), at_once)


async def read(decoded: _Decoding, start: int, end: int) -> bytes:
    async with aclosing(decoded.pieces(start, end)) as pieces:
        return b"".join([piece async for piece in pieces])


@settings(deadline=None)
@given(
    st.sampled_from(["gzip", "zstd"]),
    st.lists(st.integers(0, len(CONTENT)), min_size=1, max_size=6),
    st.integers(1, 300),
)
def test_ranges_in_ascending_order(compression: Compression, bounds: list[int], piece_bytes: int) -> None:
    halves = CONTENT[:300], CONTENT[300:]
    compress = gzip.compress if compression == "gzip" else zstd.compress
    decoded = decoding(b"".join(compress(half) for half in halves), compression, piece_bytes)
    ends = sorted(bounds)

    async def ranges() -> None:
        for start, end in zip(ends[::2], ends[1::2], strict=False):
            assert await read(decoded, start, end) == CONTENT[start:end]
        assert await read(decoded, ends[-1], UNKNOWN_END) == CONTENT[ends[-1] :]

    asyncio.run(ranges())
    assert decoded.size_bytes == decoded.expected_bytes(1) == len(CONTENT)


async def test_the_end_is_known_also_when_nothing_is_left_to_read() -> None:
    decoded = decoding(gzip.compress(CONTENT), "gzip", 100)
    assert await read(decoded, len(CONTENT), UNKNOWN_END) == b""
    assert decoded.size_bytes == len(CONTENT)


async def test_data_that_ends_before_what_is_loaded() -> None:
    with pytest.raises(Failure) as caught:
        await read(decoding(gzip.compress(CONTENT), "gzip", 100), 10, len(CONTENT) + 1)
    assert caught.value.code == "data_changed"


async def test_a_file_without_its_end_has_no_size() -> None:
    decoded = decoding(gzip.compress(CONTENT)[:-4], "gzip", 100)
    with pytest.raises(Failure) as caught:
        await read(decoded, 0, UNKNOWN_END)
    assert (caught.value.code, decoded.size_bytes) == ("compression_truncated", None)


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("rows", [3, 40_000])
async def test_the_data_goes_on_where_the_header_was_found(
    loading: Loading, monkeypatch: pytest.MonkeyPatch, compression: Compression | None, rows: int
) -> None:
    content = b"id,name\n" + b"".join(b"%d,%d\n" % (row, row) for row in range(rows))
    stored = content if compression is None else gzip.compress(content)
    manifest = await loading.stored(stored, dialect=Dialect(compression=compression))
    requests = list[object]()
    open_range = loading.store.open_range

    async def counted(key: str, **options: Any) -> Any:
        requests.append(options["start"])
        return await open_range(key, **options)

    monkeypatch.setattr(loading.store, "open_range", counted)
    source = Source(loading.store, manifest, manifest.dialect, loading.settings, at_once)
    async with source.opened():
        assert await source.read_header(Limits.of(loading.settings), named=True) == ["id", "name"]
        async with source.open_range(0, source.end) as pieces:
            assert b"".join([piece async for piece in pieces]) == content
    assert requests == [0]
    # Read to find the header only: nothing stays open.
    async with source.opened():
        await source.read_header(Limits.of(loading.settings), named=True)
    # Another range of a plain file, and the whole a second time, are requests of their own.
    if compression is None:
        async with source.opened():
            await source.read_header(Limits.of(loading.settings), named=True)
            for start, end in ((3, 9), (0, source.end), (0, source.end)):
                async with source.open_range(start, end) as pieces:
                    assert b"".join([piece async for piece in pieces]) == content[start:end]
        assert requests == [0, 0, 0, 3, 0]
