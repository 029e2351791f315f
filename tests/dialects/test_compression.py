"""Members and frames are decoded whatever the pieces; what is damaged, cut off or a bomb is refused."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_api.config import MIB
from stream_api.dialects.compression import MAX_WINDOW_BYTES, Inflater, _window_bytes, compression_of
from stream_api.dialects.dialect import Compression
from stream_api.errors import Failure

SKIPPABLE = b"\x53\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"


def inflate(
    data: bytes, compression: Compression, *, pieces: list[int] | None = None, max_bytes: int = 1000, **limits: int
) -> bytes:
    inflater = Inflater(compression, **limits)
    made, position = b"", 0
    for size in [*(pieces or []), len(data)]:
        inflater.feed(data[position : position + size])
        position += size
        while piece := inflater.read(max_bytes):
            assert len(piece) <= max_bytes
            made += piece
    inflater.finish()
    assert inflater.decoded_bytes == len(made)
    return made


def compressed(contents: list[bytes], compression: Compression) -> bytes:
    if compression == "gzip":
        return b"".join(gzip.compress(content) for content in contents)
    return b"".join(zstd.compress(content) for content in contents)


def random_bytes(size: int) -> bytes:
    """What no compression makes shorter."""
    return random.Random(size).randbytes(size)


both = pytest.mark.parametrize("compression", ["gzip", "zstd"])


@both
@settings(deadline=None)
@given(
    contents=st.lists(st.binary(max_size=300) | st.integers(500, 3000).map(random_bytes), min_size=1, max_size=4),
    pieces=st.lists(st.integers(0, 40) | st.integers(400, 1500)),
    max_bytes=st.integers(1, 50),
)
def test_all_members_and_frames_are_read(
    compression: Compression, contents: list[bytes], pieces: list[int], max_bytes: int
) -> None:
    data = compressed(contents, compression)
    assert compression_of(data) == compression
    assert inflate(data, compression, pieces=pieces, max_bytes=max_bytes) == b"".join(contents)


@both
@settings(deadline=None)
@given(pieces=st.lists(st.integers(0, 40)), share=st.floats(0, 1, exclude_max=True))
def test_a_stream_without_its_end_is_refused(compression: Compression, pieces: list[int], share: float) -> None:
    data = compressed([b"first", bytes(range(256)) * 3], compression)
    ends = {0, len(compressed([b"first"], compression))}
    cut = int(share * len(data))
    if cut in ends:
        return
    with pytest.raises(Failure) as caught:
        inflate(data[:cut], compression, pieces=pieces)
    assert caught.value.code == "compression_truncated"


@both
def test_pieces_without_a_byte_change_nothing(compression: Compression) -> None:
    data = compressed([bytes(range(256)) * 3], compression)
    assert inflate(data, compression, pieces=[20, *[0] * 40]) == bytes(range(256)) * 3
    with pytest.raises(Failure) as caught:
        inflate(data[:100], compression, pieces=[20, *[0] * 40])
    assert caught.value.code == "compression_truncated"


@pytest.mark.parametrize(
    ("data", "compression"),
    [
        (gzip.compress(b"a") + b"rest", "gzip"),
        (gzip.compress(b"a" * 1000)[:-8] + bytes(8), "gzip"),
        (gzip.compress(b"a" * 1000)[:10] + b"\xff" * 20, "gzip"),
        (zstd.compress(b"a") + b"rest", "zstd"),
        (zstd.compress(b"abc" * 1000, options={zstd.CompressionParameter.checksum_flag: 1})[:-4] + bytes(4), "zstd"),
    ],
    # gzip writes the time into its head, and every worker of the tests is to know them by the same names.
    ids=["gzip and a rest", "gzip checksum", "gzip body", "zstd and a rest", "zstd checksum"],
)
def test_what_is_damaged_is_refused(data: bytes, compression: Compression) -> None:
    with pytest.raises(Failure) as caught:
        inflate(data, compression)
    assert caught.value.code == "compression_invalid"


def test_nuls_after_gzip_are_passed_over() -> None:
    data = gzip.compress(b"a") + bytes(600)
    assert inflate(data, "gzip", pieces=[len(data) - 300, 100]) == b"a"
    assert inflate(data + gzip.compress(b"b"), "gzip") == b"ab"


def test_frames_without_data_are_passed_over() -> None:
    data = SKIPPABLE + zstd.compress(b"a") + SKIPPABLE + zstd.compress(b"b") + SKIPPABLE
    assert compression_of(data) == "zstd"
    for size in range(1, len(data)):
        assert inflate(data, "zstd", pieces=[size]) == b"ab"


@pytest.mark.parametrize(("window_log", "fits"), [(10, True), (25, True), (26, False), (27, False)])
def test_the_window_of_zstd_is_bounded(window_log: int, fits: bool) -> None:
    options: dict[int, int] = {
        zstd.CompressionParameter.window_log: window_log,
        zstd.CompressionParameter.content_size_flag: 0,
    }
    compressor = zstd.ZstdCompressor(options=options)
    data = compressor.compress(b"abc" * 1000) + compressor.flush()
    assert _window_bytes(data) == 1 << window_log
    if fits:
        assert inflate(data, "zstd", pieces=[3, 2, 1]) == b"abc" * 1000
        return
    with pytest.raises(Failure) as caught:
        inflate(zstd.compress(b"x") + data, "zstd", pieces=[3, 2, 1])
    assert (caught.value.code, caught.value.extra["limitBytes"]) == ("compression_window", MAX_WINDOW_BYTES)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65791, 65792, 10**6])
def test_the_window_of_a_single_segment_is_its_content(size: int) -> None:
    data = zstd.compress(bytes(size))
    assert zstd.get_frame_info(data).decompressed_size == size
    window = _window_bytes(data)
    assert window is not None
    assert window >= size
    for cut in range(7):
        assert _window_bytes(data[:cut]) in (None, window)


@both
def test_a_bomb_is_refused_and_takes_little_memory(compression: Compression) -> None:
    if compression == "gzip":
        compressor = zlib.compressobj(9, wbits=31)
        data = b"".join(compressor.compress(bytes(MIB)) for _ in range(200)) + compressor.flush()
    else:
        data = zstd.compress(bytes(200 * MIB))
    assert len(data) < MIB
    tracemalloc.start()
    try:
        with pytest.raises(Failure) as caught:
            list(iter_pieces(Inflater(compression, max_expansion=100), data))
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    assert (caught.value.code, caught.value.extra) == ("expansion_too_large", {"limitRatio": 100})


def iter_pieces(inflater: Inflater, data: bytes):  # type: ignore[no-untyped-def]  # noqa: ANN201
    for start in range(0, len(data), 64 * 1024):
        inflater.feed(data[start : start + 64 * 1024])
        while piece := inflater.read(64 * 1024):
            yield len(piece)


def test_the_size_of_what_comes_out_is_bounded() -> None:
    assert inflate(gzip.compress(bytes(1000)), "gzip", max_decoded_bytes=1000) == bytes(1000)
    with pytest.raises(Failure) as caught:
        inflate(gzip.compress(bytes(1001)), "gzip", max_decoded_bytes=1000)
    assert (caught.value.code, caught.value.extra) == ("expansion_too_large", {"limitBytes": 1000})
