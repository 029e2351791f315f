"""gzip and zstd: known by how a file begins, and decoded in pieces of bounded size."""

from __future__ import annotations

import zlib
from typing import Final, Protocol

from backports import zstd

from stream_api.config import MIB
from stream_api.dialects.dialect import Compression
from stream_api.errors import Failure

GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
#: Frames that hold no data may stand before and between others: 0x184D2A50 to 0x184D2A5F, little endian (RFC 8878,
#: section 3.1.2).
_SKIPPABLE: Final = frozenset(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16))
_MAGIC_BYTES: Final = 4
#: What a decoder is given first: the longest header of a zstd frame has 18 bytes (RFC 8878, section 3.1.1.1).
_FIRST_BYTES: Final = 512

#: The longest window of zstd that is decoded: what a decoder has to keep. `zstd --ultra` and `--long` make larger ones.
MAX_WINDOW_BYTES: Final = 32 * MIB
_ZSTD_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: 25}
#: A file may expand to so much whatever the ratio: short ones of equal rows are harmless.
_FREE_BYTES: Final = 16 * MIB
#: zlib: the window and the tables of a decoder, and of what it is given the rest that it has not read.
_ZLIB_BYTES: Final = MIB
#: What one decoder holds at most.
DECODER_BYTES: Final = MAX_WINDOW_BYTES + _ZLIB_BYTES


def compression_of(head: bytes) -> Compression | None:
    """How a file that begins like this is compressed, if it is."""
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    if head.startswith(ZSTD_MAGIC) or head[:_MAGIC_BYTES] in _SKIPPABLE:
        return "zstd"
    return None


class _Decoder(Protocol):
    """Decodes one gzip member or one zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes: ...


class _GzipMember:
    """One member, checksum included, as `ZstdDecompressor` is one frame."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        rest = self._zlib.unconsumed_tail
        made = self._zlib.decompress(rest + data if rest else data, max_length)
        self.needs_input = len(made) < max_length
        return made


class Inflater:
    """Decodes a file: all its members or frames, one after another.

    Fed with a piece, it is read until it gives nothing more. Holds the piece and the decoder's window. What follows the
    end of a member is copied with it, so that one gets little at first: they may be thousands, and empty.

    :param max_decoded_bytes: bound for what comes out.
    :param max_expansion: bound for what comes out against what went in, beyond the first 16 MiB.
    """

    def __init__(
        self, compression: Compression, *, max_decoded_bytes: int | None = None, max_expansion: int | None = None
    ) -> None:
        self._compression: Final = compression
        self._max_decoded_bytes: Final = max_decoded_bytes
        self._max_expansion: Final = max_expansion
        self._decoder: _Decoder | None = None
        #: What was fed, and how much of it has gone into decoders.
        self._input = b""
        self._at = 0
        self._take_bytes = _FIRST_BYTES
        #: Members or frames that have begun.
        self.members = 0
        #: Bytes that went in, and that came out.
        self.fed_bytes = 0
        self.decoded_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take the next piece of the file, once `read` has given nothing."""
        self._input = self._input[self._at :] + data
        self._at = 0
        self.fed_bytes += len(data)

    def read(self, max_bytes: int) -> bytes:
        """The next 1 to `max_bytes` bytes; nothing when more input is needed. zlib and zstd release the GIL.

        :raises Failure: `compression_invalid`, `compression_window`, `expansion_too_large`.
        """
        while self._decoder is not None or self._begin():
            decoder = self._decoder
            assert decoder is not None  # noqa: S101 (`_begin` has made one)
            data = memoryview(self._input)[self._at : self._at + self._take_bytes] if decoder.needs_input else b""
            if not data and decoder.needs_input:
                break  # zstd takes a decoder that is asked in vain, time and again, for damaged data
            self._at += len(data)
            self._take_bytes = len(self._input)
            try:
                made = decoder.decompress(data, max_bytes)
            except (zlib.error, zstd.ZstdError) as exc:
                raise self._damaged(f"it cannot be decoded ({exc})") from exc
            if decoder.eof:
                # All of it is of this piece: a decoder that wants more has used up what it had.
                self._at -= len(decoder.unused_data)
                self._decoder = None
            if made:
                self.decoded_bytes += len(made)
                self._check_size()
                return made
        return b""

    def finish(self) -> None:
        """Check that the file may end here.

        :raises Failure: `compression_truncated`.
        """
        self._pass_padding()
        if self._decoder is not None or self._at < len(self._input):
            detail = (
                f"The file is compressed by {self._compression} and ends before the end of its stream, after "
                f"{self.fed_bytes} bytes: a part of it is missing. Compress it again and upload it anew."
            )
            raise Failure("compression_truncated", detail)

    def _begin(self) -> bool:
        """Begin a member or frame; whether there is one to begin, and enough of it."""
        self._pass_padding()
        data = self._input[self._at : self._at + _FIRST_BYTES]
        if self._compression == "gzip":
            if len(data) < len(GZIP_MAGIC):
                return False
            if not data.startswith(GZIP_MAGIC):
                raise self._damaged("what follows the end of its stream is no gzip")
            self._decoder = _GzipMember()
        else:
            if len(data) < _MAGIC_BYTES:
                return False
            if not data.startswith(ZSTD_MAGIC) and data[:_MAGIC_BYTES] not in _SKIPPABLE:
                raise self._damaged("what follows the end of its stream is no zstd")
            window = _window_bytes(data)
            if window is None:
                return False
            if window > MAX_WINDOW_BYTES:
                detail = (
                    f"The file is compressed by zstd with a window of {window} bytes, and {MAX_WINDOW_BYTES} are "
                    "allowed. Compress it without --long and --ultra."
                )
                raise Failure("compression_window", detail, windowBytes=window, limitBytes=MAX_WINDOW_BYTES)
            self._decoder = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
        self.members += 1
        self._take_bytes = _FIRST_BYTES
        return True

    def _pass_padding(self) -> None:
        """Pass over the NULs that may follow a gzip stream on tapes, as gzip itself does."""
        padded = self._compression == "gzip" and self._decoder is None and self.members
        if padded and self._input[self._at : self._at + 1] == b"\0":
            self._at = len(self._input) - len(self._input[self._at :].lstrip(b"\0"))

    def _check_size(self) -> None:
        limit = self._max_decoded_bytes
        if limit is not None and self.decoded_bytes > limit:
            detail = f"The file expands to more than {limit} bytes (STREAM_API_MAX_DECODED_BYTES)."
            raise Failure("expansion_too_large", detail, limitBytes=limit)
        ratio = self._max_expansion
        if ratio is not None and self.decoded_bytes > _FREE_BYTES and self.decoded_bytes > ratio * self.fed_bytes:
            detail = f"The file expands to more than {ratio} times its size (STREAM_API_MAX_EXPANSION)."
            raise Failure("expansion_too_large", detail, limitRatio=ratio)

    def _damaged(self, what: str) -> Failure:
        detail = f"The file is compressed by {self._compression} and damaged: {what}."
        return Failure("compression_invalid", detail)


def _window_bytes(header: bytes) -> int | None:
    """The window of a zstd frame that begins like this; `None` while there is too little of it.

    See RFC 8878, section 3.1.1.1.
    """
    if header[:_MAGIC_BYTES] in _SKIPPABLE:
        return 0
    if len(header) < _MAGIC_BYTES + 2:
        return None
    descriptor, follows = header[_MAGIC_BYTES], header[_MAGIC_BYTES + 1 :]
    if not descriptor & 0x20:
        base = 1 << (10 + (follows[0] >> 3))
        return base + base // 8 * (follows[0] & 7)
    # A single segment: the window is the content, whose size follows the id of the dictionary.
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    size = (1, 2, 4, 8)[descriptor >> 6]
    if len(follows) < dictionary + size:
        return None
    content = int.from_bytes(follows[dictionary : dictionary + size], "little")
    return content + 256 if size == 2 else content  # noqa: PLR2004 (as the format has it)
