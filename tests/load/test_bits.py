"""Bits tell what the bytes tell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.load.bits import Words, bits, of_next, of_previous, parity, places, set_bit

masks = st.lists(st.booleans(), max_size=300) | st.sampled_from([[True] * 640, [False] * 640, [True, *[False] * 639]])


def unpacked(words: Words) -> list[bool]:
    return [bool(int(word) >> place & 1) for word in words for place in range(64)]


def made(mask: list[bool]) -> Words:
    return bits(np.array(mask, np.bool_))


@given(masks)
def test_bits_and_their_places(mask: list[bool]) -> None:
    words = made(mask)
    assert unpacked(words) == mask + [False] * (64 - len(mask) % 64)
    assert places(words).tolist() == [place for place, each in enumerate(mask) if each]


@given(masks)
def test_neighbours(mask: list[bool]) -> None:
    words = made(mask)
    here = unpacked(words)
    assert unpacked(of_next(words)) == [*here[1:], False]
    assert unpacked(of_previous(words)) == [False, *here[:-1]]


@given(masks)
def test_parity(mask: list[bool]) -> None:
    words = made(mask)
    here = unpacked(words)
    assert unpacked(parity(words)) == [sum(here[: place + 1]) % 2 == 1 for place in range(len(here))]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 128])
def test_there_is_a_bit_for_what_follows(size: int) -> None:
    words = made([False] * size)
    set_bit(words, size)
    assert places(words).tolist() == [size]
