from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from bench.frame import BenchFailed, Figure, Goal, Spread, in_turns, percentile


def _figure(
    values: list[float],
    reference_values: list[float] | None = None,
    *,
    goal: Goal | None = None,
    higher_is_better: bool = True,
) -> Figure:
    return Figure(
        name="a.b",
        title="A",
        unit="rows/s",
        values=values,
        reference="psql",
        reference_values=reference_values or [],
        goal=goal,
        higher_is_better=higher_is_better,
    )


def test_a_spread_is_the_median_the_least_and_the_greatest() -> None:
    assert Spread.of([3, 1, 10]) == Spread(3, 1, 10)
    assert Spread.of([4, 2]) == Spread(3, 2, 4)


def test_a_ratio_is_of_neighbours_and_not_of_medians() -> None:
    # The machine got slower by half for both in the second round: the ratio is the same in each.
    figure = _figure([200, 100, 240], [100, 50, 120])
    assert figure.ratio == Spread(2, 2, 2)
    assert figure.value.median == 200
    assert figure.reference_value == Spread(100, 50, 120)
    # Medians alone would say 1.
    assert _figure([1, 2, 3], [3, 2, 1]).ratio == Spread(1, 1 / 3, 3)


def test_without_a_reference_or_with_one_that_is_nothing_there_is_no_ratio() -> None:
    assert _figure([1.0]).ratio is None
    assert _figure([1.0]).reference_value is None
    assert _figure([1.0], [0.0]).ratio is None


def test_a_figure_that_was_not_measured_or_not_beside_its_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="never measured"):
        _figure([])
    with pytest.raises(ValueError, match="2 values and 1 of its reference"):
        _figure([1, 2], [1])


@pytest.mark.parametrize(("rate", "verdict"), [(1.6, "aim"), (1.59, "must"), (1.3, "must"), (1.29, "missed")])
def test_a_rate_is_judged_by_its_ratio(rate: float, verdict: str) -> None:
    assert _figure([rate], [1.0], goal=Goal(must=1.3, aim=1.6)).verdict == verdict


@pytest.mark.parametrize(("size", "verdict"), [(160, "aim"), (161, "must"), (220, "must"), (221, "missed")])
def test_a_size_is_judged_by_itself_and_less_is_better(size: float, verdict: str) -> None:
    goal = Goal(must=220, aim=160, of="value")
    assert _figure([size], [1.0], goal=goal, higher_is_better=False).verdict == verdict


def test_without_a_goal_or_without_what_it_is_about_nothing_is_judged() -> None:
    assert _figure([1.0], [1.0]).verdict is None
    assert _figure([1.0], goal=Goal(must=1, aim=2)).verdict is None


async def test_contestants_take_turns_and_none_is_always_first() -> None:
    order: list[str] = []

    def contestant(name: str) -> Callable[[], Awaitable[int]]:
        async def run() -> int:
            order.append(name)
            return len(order)

        return run

    found = await in_turns({name: contestant(name) for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    assert found == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


async def test_a_contestant_that_fails_ends_the_comparison() -> None:
    async def fail() -> int:
        raise BenchFailed("rows are missing")

    with pytest.raises(BenchFailed, match="rows are missing"):
        await in_turns({"a": fail}, 2)


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(each) for each in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.001, 0.5, 0.99, 0.991, 1.0)] == [1, 50, 99, 100, 100]
    assert percentile([7.0], 0.99) == 7.0
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)
