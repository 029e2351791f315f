"""Bytes as bits: what holds for each byte of some data in a 64th of the words that a number for each would take.

A word holds the bits of 64 bytes, the first of them lowest, so a shift by one looks at a byte's neighbour and an
operation on a word at 64 bytes at once.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from stream_api.load.model import Int64s

Words = npt.NDArray[np.uint64]

#: Little-endian on every machine: so the bytes of a word are in the order of the bits that `packbits` makes.
_WORD: Final = np.dtype("<u8")
_BITS: Final = 64
_ONE, _LAST = np.uint64(1), np.uint64(63)


def bits(mask: npt.NDArray[np.bool_]) -> Words:
    """One bit for each element, and at least one more, which is 0."""
    words = np.zeros(mask.size // _BITS + 1, _WORD)
    packed = np.packbits(mask, bitorder="little")
    words.view(np.uint8)[: packed.size] = packed
    return words


def set_bit(words: Words, place: int) -> None:
    """Set the bit of this place."""
    words[place // _BITS] |= _ONE << np.uint64(place % _BITS)


def places(words: Words) -> Int64s:
    """The places of the bits that are set, ascending."""
    octets = words.astype(_WORD, copy=False).view(np.uint8)
    # Mostly few are set: then it is bytes that are looked through, and only some of these are taken apart.
    some = np.flatnonzero(octets != 0)
    of_some = np.flatnonzero(np.unpackbits(octets[some], bitorder="little").view(np.bool_))
    found: Int64s = some[of_some >> 3] << 3 | of_some & 7
    return found


def of_next(words: Words) -> Words:
    """For each place the bit of the next one; 0 for the last."""
    moved = words >> _ONE
    moved[:-1] |= words[1:] << _LAST
    return moved


def of_previous(words: Words) -> Words:
    """For each place the bit of the one before it; 0 for the first."""
    moved = words << _ONE
    moved[1:] |= words[:-1] >> _LAST
    return moved


def parity(words: Words) -> Words:
    """For each place whether the number of bits that are set up to it, its own included, is odd."""
    odd = words ^ (words << _ONE)
    for distance in (2, 4, 8, 16, 32):
        odd ^= odd << np.uint64(distance)
    # Now it holds within each word. A word after an odd number of them is turned round: minus 1 has all bits set.
    odd[1:] ^= np.negative(np.bitwise_xor.accumulate(odd[:-1] >> _LAST))
    return odd
