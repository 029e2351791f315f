"""Compressed files: offsets and lines are those of what was compressed."""

from __future__ import annotations

import gzip
from typing import Final

from backports import zstd

from tests.nasty.case import Nasty

_TEXT: Final = b'a,b\nx,"y\nz"\nw\n'
_ROWS: Final[list[tuple[str | None, ...]]] = [("x", "y\nz")]
_REJECTS: Final = [(4, 12, "wrong_field_count")]
_GZIP: Final = gzip.compress(_TEXT, mtime=0)
_ZSTD: Final = zstd.compress(_TEXT)


def _named() -> bytes:
    """A member with a name and a comment, as `gzip` writes it: flags 0x18."""
    return _GZIP[:3] + b"\x18" + _GZIP[4:10] + b"x.csv\0\xe9\0" + _GZIP[10:]


FILES: Final = [
    Nasty("gzip", _GZIP, _ROWS, _REJECTS),
    Nasty("gzip with a name", _named(), _ROWS, _REJECTS),
    Nasty("gzip in members, torn in a field", gzip.compress(_TEXT[:7]) + gzip.compress(_TEXT[7:]), _ROWS, _REJECTS),
    Nasty("gzip with an empty member", gzip.compress(b"") + _GZIP + gzip.compress(b""), _ROWS, _REJECTS),
    Nasty("gzip, padded as on tapes", _GZIP + bytes(30), _ROWS, _REJECTS),
    Nasty("gzip without compression", gzip.compress(_TEXT, 0), _ROWS, _REJECTS),
    Nasty("gzip of UTF-16", gzip.compress("\ufeffa,b\nx,é\n".encode("utf-16-be")), [("x", "é")]),
    Nasty("gzip of gzip", gzip.compress(_GZIP), fails="encoding_unsupported"),
    Nasty("gzip of nothing", gzip.compress(b""), fails="header_mismatch"),
    Nasty("gzip with nothing after its header", _GZIP[:10], fails="compression_truncated"),
    Nasty("gzip without its checksum", gzip.compress(b"a,b\n")[:-8], fails="compression_truncated"),
    Nasty("gzip with a wrong checksum", gzip.compress(b"a,b\n")[:-8] + bytes(8), fails="compression_invalid"),
    Nasty("gzip with something behind it", gzip.compress(b"a,b\n") + b"a,b\n", fails="compression_invalid"),
    Nasty("zstd", _ZSTD, _ROWS, _REJECTS),
    Nasty("zstd in frames, torn in a field", zstd.compress(_TEXT[:7]) + zstd.compress(_TEXT[7:]), _ROWS, _REJECTS),
    # A frame of four bytes that are to be passed over (RFC 8878, section 3.1.2).
    Nasty("zstd behind a frame without data", b"\x53\x2a\x4d\x18\x04\0\0\0abcd" + _ZSTD, _ROWS, _REJECTS),
    Nasty("zstd without its end", zstd.compress(b"a,b\n")[:-1], fails="compression_truncated"),
    Nasty("zstd with something behind it", zstd.compress(b"a,b\n") + b"a,b\n", fails="compression_invalid"),
]
