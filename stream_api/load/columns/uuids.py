"""Fast path of uuid."""

from __future__ import annotations

import binascii
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stream_api.load.columns.base import Bools, Bytes, Typed, as_bools, contents

_LENGTH: Final = 36
_HYPHENS: Final = [8, 13, 18, 23]
_DIGITS: Final = np.array([i for i in range(_LENGTH) if i not in _HYPHENS])
_HYPHEN: Final = 0x20
_OTHER: Final = 0xFF
_UUID: Final = pa.binary(16)


def _classes() -> npt.NDArray[np.uint8]:
    """For each byte: the value of a hexadecimal digit, `_HYPHEN` or `_OTHER`."""
    table = np.full(256, _OTHER, np.uint8)
    table[ord("-")] = _HYPHEN
    for value in range(16):
        for digit in (f"{value:x}", f"{value:X}"):
            table[ord(digit)] = value
    return table


_CLASSES: Final = _classes()
#: At each place of a uuid, what must remain of the class under the mask `0xF0`: nothing, or the hyphen.
_SHAPE: Final = np.array([_HYPHEN if i in _HYPHENS else 0 for i in range(_LENGTH)], np.uint8)


def read_uuid(values: pa.StringArray) -> Typed:
    """uuid: 8-4-4-4-12 hexadecimal digits in either case, as the 16 bytes that go over the wire."""
    valid = as_bools(values.is_valid())
    if (decoded := _decoded(values, valid)) is not None:
        return Typed(_uuids(decoded, valid))
    raw = np.zeros((len(values), 16), np.uint8)
    good = _read_each(values, raw) & valid
    doubtful = valid & ~good
    return Typed(_uuids(raw, good), doubtful if doubtful.any() else None)


def _decoded(values: pa.StringArray, valid: Bools) -> Bytes | None:
    """The quick way: the bytes of all values, if all but the nulls have the form and nothing stands between them."""
    text, places = contents(values)
    rows = len(values) - values.null_count
    if text.size != rows * _LENGTH or not ((places[1:] - places[:-1])[valid] == _LENGTH).all():
        return None
    table = text.reshape(rows, _LENGTH)
    if not (table[:, _HYPHENS] == ord("-")).all():
        return None
    try:
        decoded = binascii.unhexlify(table.take(_DIGITS, axis=1).data)
    except binascii.Error:
        return None
    dense = np.frombuffer(decoded, np.uint8).reshape(rows, 16)
    if rows == len(values):
        return dense
    raw = np.zeros((len(values), 16), np.uint8)
    raw[valid] = dense
    return raw


def _read_each(values: pa.StringArray, raw: Bytes) -> Bools:
    """The exact way: which values have the form; their bytes go into `raw`. A null has any."""
    text, places = contents(values)
    good = np.zeros(len(values), np.bool_)
    right_length = np.flatnonzero(np.diff(places) == _LENGTH)
    if len(right_length):
        # Row by row the 36 bytes from where each value starts.
        rows = np.lib.stride_tricks.sliding_window_view(text, _LENGTH)[places[right_length]]
        classes = np.take(_CLASSES, rows)
        good[right_length] = ((classes & 0xF0) == _SHAPE).all(axis=1)
        digits = classes[:, _DIGITS]
        raw[right_length] = (digits[:, 0::2] << 4) | digits[:, 1::2]
    return good


def _uuids(raw: Bytes, good: Bools) -> pa.Array[Any]:
    bitmap = None if good.all() else pa.py_buffer(np.packbits(good, bitorder="little").data)
    return pa.FixedSizeBinaryArray.from_buffers(_UUID, len(raw), [bitmap, pa.py_buffer(raw.data)])
