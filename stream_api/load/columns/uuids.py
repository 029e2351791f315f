"""Fast path of uuid."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stream_api.load.columns.base import Typed, as_bools

_LENGTH: Final = 36
_HYPHENS: Final = (8, 13, 18, 23)
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
    _, offset_buffer, data = values.buffers()
    if len(values) == 0 or offset_buffer is None:  # an empty array may have no buffers
        return Typed(pa.nulls(len(values), _UUID))
    offsets = np.frombuffer(memoryview(offset_buffer), np.int32)[values.offset : values.offset + len(values) + 1]
    right_length = np.flatnonzero(np.diff(offsets) == _LENGTH)
    starts = offsets[:-1][right_length]
    raw = np.zeros((len(values), 16), np.uint8)
    good = np.zeros(len(values), np.bool_)
    if len(starts) and data is not None:
        # Row by row the 36 bytes from where each value starts.
        text = np.lib.stride_tricks.sliding_window_view(np.frombuffer(memoryview(data), np.uint8), _LENGTH)[starts]
        classes = np.take(_CLASSES, text)
        good[right_length] = ((classes & 0xF0) == _SHAPE).all(axis=1)
        digits = classes[:, _DIGITS]
        raw[right_length] = (digits[:, 0::2] << 4) | digits[:, 1::2]
    if values.null_count:
        valid = as_bools(values.is_valid())
        good &= valid
    else:
        valid = np.ones(len(values), np.bool_)
    bitmap = None if good.all() else pa.py_buffer(np.packbits(good, bitorder="little").data)
    array = pa.FixedSizeBinaryArray.from_buffers(_UUID, len(values), [bitmap, pa.py_buffer(raw.data)])
    doubtful = valid & ~good
    return Typed(array, doubtful if doubtful.any() else None)
