from __future__ import annotations

import itertools

import pytest

from stream_api.errors import Failure, RunLost
from stream_api.flow.causes import first_cause
from stream_api.flow.channel import ChannelClosed, ChannelFailed

LOST = RunLost()
PERMANENT = Failure("constraint_violated", "a row")
BUG = KeyError("x")
TRANSIENT = Failure("storage_unavailable", "away")
CHANNEL = ChannelFailed("rows")


@pytest.mark.parametrize("kept", range(5))
def test_the_cause_is_found_in_any_order(kept: int) -> None:
    errors: list[Exception] = [LOST, PERMANENT, BUG, TRANSIENT, CHANNEL][kept:]
    for order in itertools.permutations(errors):
        assert first_cause(ExceptionGroup("", [*order, ChannelClosed("encoded")])) is errors[0]


def test_groups_within_groups() -> None:
    assert first_cause(ExceptionGroup("", [ExceptionGroup("", [CHANNEL, PERMANENT]), TRANSIENT])) is PERMANENT
