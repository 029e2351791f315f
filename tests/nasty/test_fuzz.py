"""Some loads of damaged files; `make fuzz` does ten thousand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from stream_api.config import Settings
from stream_api.dialects.detection import detect
from stream_api.dialects.dialect import Given
from stream_api.load.columns.base import Bools
from stream_api.load.parser import _Parsing
from tests.nasty.fuzz import Run, fuzz
from tests.nasty.guarantees import check_untouched, read_file
from tests.nasty.mutations import damage, make_file

pytestmark = pytest.mark.timeout(400)


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


def test_what_is_lost_of_untouched_rows_is_noticed() -> None:
    noticed = 0
    for number in range(60):
        run = Run.of(3, number)
        dialect = detect(run.damage.data, whole=True, given=Given())
        # Units of UTF-16 that are torn make another text of all that follows.
        if dialect.encoding.startswith("utf-16") or dialect != detect(run.file.data, whole=True, given=Given()):
            continue
        read = read_file(run.damage.data, dialect, 10**6)
        rows = [tuple(fields) for fields in read.good.values()]
        check_untouched(rows, {}, run.file, run.damage, read, keyed=False)
        touched = {number for number, record in enumerate(run.file.records) if run.damage.touches(record)}
        for place, record in enumerate(run.file.records):
            if not touched & {place - 1, place, place + 1} and record.values in rows:
                fewer = [row for row in rows if row != record.values]
                with pytest.raises(AssertionError, match=f"row {place} is not in the table"):
                    check_untouched(fewer, {}, run.file, run.damage, read, keyed=False)
                noticed += 1
    assert noticed > 300


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
