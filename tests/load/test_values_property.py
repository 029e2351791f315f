"""A load against Postgres' own COPY, in both directions; `make judge` compares a hundred thousand values."""

from __future__ import annotations

import pytest

from stream_api.load.encoder import BINARY
from tests.load.judging import compare_type
from tests.load.other_value_cases import OTHER_CASES
from tests.load.value_cases import CASES, Case

_PARTS = 6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.type)
def test_the_same_is_taken_and_the_same_is_stored(empty_database: str, case: Case) -> None:
    _, binary = compare_type(empty_database, case, examples=8)
    assert (binary > 0) == (case.binary and BINARY), "the test must see the fast path where there is one"


@pytest.mark.parametrize("part", range(_PARTS))
def test_other_types(empty_database: str, part: int) -> None:
    # A database for each type would take longer than its values.
    for case in OTHER_CASES[part::_PARTS]:
        assert compare_type(empty_database, case, examples=1)[1] == 0, case.type
