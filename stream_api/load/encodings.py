"""Encodings: the bytes of a file as the grammar sees them, and as UTF-8.

Offsets are those of the file as it is, never of what it becomes: segments, batches and records are cut on its own
bytes. For that the grammar needs no text, only bytes in which each of its characters, all of them ASCII, is one byte:

- UTF-8, ISO 8859-1 and Windows-1252 are such by themselves;
- of UTF-16 a shadow is made, one byte for each unit of two: the ASCII character, or 0x80 for anything else.

Recoding is done batch by batch, once the records are known.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from stream_api.dialects.dialect import Encoding
from stream_api.load.model import Int64s

#: How UTF-16 looks to numpy.
_UNITS: Final[dict[str, str]] = {"utf-16-le": "<u2", "utf-16-be": ">u2"}
_BYTE_ORDER_MARKS: Final[dict[str, bytes]] = {
    "utf-8": b"\xef\xbb\xbf",
    "utf-16-le": b"\xff\xfe",
    "utf-16-be": b"\xfe\xff",
}
_NOT_ASCII: Final = 0x80
#: Units of UTF-16 from here on are three bytes of UTF-8, but for the halves of pairs.
_THREE_BYTES: Final = 0x800
_HALF: Final = 0xF800
_HIGH_OR_LOW: Final = 0xFC00
_HIGH: Final = 0xD800
_LOW: Final = 0xDC00
_REPLACEMENT: Final = 0xFFFD

#: For each byte of Windows-1252 its bytes in UTF-8; five of them have no meaning.
_1252: Final = [bytes([byte]).decode("cp1252", "replace").encode() for byte in range(256)]
_LENGTHS: Final = {
    "iso-8859-1": np.array([1] * 128 + [2] * 128, np.int64),
    "windows-1252": np.array([len(each) for each in _1252], np.int64),
}
_UNDEFINED_1252: Final = np.array([each == "\ufffd".encode() for each in _1252])


def unit_bytes(encoding: Encoding) -> int:
    """Bytes of the file for each byte that the grammar sees."""
    return 2 if encoding in _UNITS else 1


def byte_order_mark(encoding: Encoding) -> bytes:
    """What a file of this encoding may begin with."""
    return _BYTE_ORDER_MARKS.get(encoding, b"")


def shadow(data: bytes, encoding: Encoding) -> bytes:
    """What the grammar sees of `data`; half a unit at its end counts as one."""
    if encoding not in _UNITS:
        return data
    units = np.frombuffer(data, _UNITS[encoding], len(data) // 2)
    seen = np.where(units < _NOT_ASCII, units, _NOT_ASCII).astype(np.uint8).tobytes()
    return seen + b"\x80" if len(data) % 2 else seen


def recode(data: bytes, ends: Int64s, encoding: Encoding) -> tuple[bytes, Int64s, Int64s]:
    """Records of another encoding in UTF-8; for UTF-8 itself what was given.

    :param ends: of the records in `data`, which are all of it.
    :returns: the records, their ends, and the numbers of those in which something has no meaning in the encoding.
    """
    none = ends[:0]
    if encoding == "utf-8" or (encoding not in _UNITS and data.isascii()):
        return data, ends, none
    if encoding in _UNITS:
        return _recode_utf16(data, ends, _UNITS[encoding])
    array = np.frombuffer(data, np.uint8)
    lengths = np.cumsum(_LENGTHS[encoding][array])
    if encoding == "iso-8859-1":
        return data.decode(encoding).encode(), lengths[ends - 1], none
    bad = np.flatnonzero(_UNDEFINED_1252[array])
    return data.decode("cp1252", "replace").encode(), lengths[ends - 1], _records_at(bad, ends)


def _recode_utf16(data: bytes, ends: Int64s, units_type: str) -> tuple[bytes, Int64s, Int64s]:
    units = np.frombuffer(data, units_type, len(data) // 2).astype(np.uint16)
    if len(data) % 2:
        units = np.append(units, np.uint16(_REPLACEMENT))
    high, low = (units & _HIGH_OR_LOW) == _HIGH, (units & _HIGH_OR_LOW) == _LOW
    pair = np.zeros(units.size, np.bool_)
    pair[:-1] = high[:-1] & low[1:]
    alone = high & ~pair
    alone[0] |= low[0] if units.size else False
    alone[1:] |= low[1:] & ~pair[:-1]
    bad = np.flatnonzero(alone)
    if bad.size:
        units[bad] = _REPLACEMENT
    text = units.astype("<u2").tobytes().decode("utf-16-le").encode()
    # Each half of a pair stands for two of its four bytes.
    sizes = np.where(units < _NOT_ASCII, 1, np.where((units < _THREE_BYTES) | ((units & _HALF) == _HIGH), 2, 3))
    lengths = np.cumsum(sizes)
    if len(data) % 2:
        bad = np.append(bad, units.size - 1)
    return text, lengths[(ends + 1) // 2 - 1], _records_at(bad * 2, ends)


def _records_at(positions: npt.NDArray[np.intp], ends: Int64s) -> Int64s:
    return np.unique(np.searchsorted(ends, positions, side="right"))
