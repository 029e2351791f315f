"""Some loads of damaged files; `make fuzz` does ten thousand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from stream_api.config import Settings
from stream_api.load.columns.base import Bools
from stream_api.load.parser import _Parsing
from tests.nasty.fuzz import Run, fuzz
from tests.nasty.mutations import damage, make_file

pytestmark = pytest.mark.timeout(300)


async def test_damaged_files(settings: Settings) -> None:
    made = await fuzz(settings, seed=6, numbers=list(range(120)))
    assert made.failed == {}
    assert made.states["completed"] >= 100
    assert made.compared >= 90


async def test_a_row_that_is_lost_is_noticed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other test asks for is not always so."""
    not_blank = _Parsing._not_blank

    def all_but_one(self: _Parsing) -> Bools:
        kept = not_blank(self)
        if kept.sum() == 2:
            kept[np.flatnonzero(kept)[1]] = False
        return kept

    monkeypatch.setattr(_Parsing, "_not_blank", all_but_one)
    made = await fuzz(settings, seed=6, numbers=list(range(24)))
    assert made.failed


def test_a_run_is_repeatable() -> None:
    assert [Run.of(1, number) for number in range(20)] == [Run.of(1, number) for number in range(20)]


def test_damage_is_where_it_is_said_to_be() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        file = make_file(rng)
        made = damage(rng, file)
        for record in file.records:
            if not made.touches(record):
                start = made.moved(record.start)
                assert made.data[start : start + len(record.data)] == record.data
