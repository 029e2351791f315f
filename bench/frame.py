"""The frame of every measurement: figures beside their references, in turns, with their spread.

A figure is measured several times, and each time its reference is measured next to it: what else the machine does then
happens to both. Its ratio is the median of the ratios of these pairs, and its spread is from the least to the greatest
of them. Nothing is left out of it, and no test asserts it: a figure is what it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

Measured = TypeVar("Measured")


class BenchFailed(Exception):
    """Something that was to be measured did not work, or not rightly: it has no speed."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Several measurements of one thing: the median, the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is to reach.

    :param must: the least that is good enough. :param aim: what is hoped for.
    :param of: whether it is about the figure's ratio or its own median.
    """

    must: float
    aim: float
    of: Literal["ratio", "value"] = "ratio"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure.

    :param name: in dots, the same in every run: `load.events.lanes_2`.
    :param title: for readers.
    :param unit: of the values.
    :param values: in the order in which they were measured.
    :param reference: what it is compared to; empty where there is nothing.
    :param reference_values: one for each value, measured beside it.
    :param higher_is_better: a rate, and not a time or a size.
    :param note: what a reader has to know.
    """

    name: str
    title: str
    unit: str
    values: list[float]
    reference: str = ""
    reference_values: list[float] = field(default_factory=list)
    higher_is_better: bool = True
    goal: Goal | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.values:
            msg = f"{self.name} was never measured"
            raise ValueError(msg)
        if self.reference_values and len(self.values) != len(self.reference_values):
            msg = f"{self.name}: {len(self.values)} values and {len(self.reference_values)} of its reference"
            raise ValueError(msg)

    @property
    def value(self) -> Spread:
        """Its own values."""
        return Spread.of(self.values)

    @property
    def reference_value(self) -> Spread | None:
        """Those of its reference."""
        return Spread.of(self.reference_values) if self.reference_values else None

    @property
    def ratio(self) -> Spread | None:
        """How many times the reference it is, pair by pair; none where a reference is nothing."""
        if not self.reference_values or not all(self.reference_values):
            return None
        return Spread.of([a / b for a, b in zip(self.values, self.reference_values, strict=True)])

    @property
    def verdict(self) -> Literal["aim", "must", "missed"] | None:
        """Which of its goals the median reaches; `None` where it has none, or nothing to judge by."""
        judged = self.value if self.goal is None or self.goal.of == "value" else self.ratio
        if self.goal is None or judged is None:
            return None
        if self._reaches(judged.median, self.goal.aim):
            return "aim"
        return "must" if self._reaches(judged.median, self.goal.must) else "missed"

    def _reaches(self, value: float, bound: float) -> bool:
        return value >= bound if self.higher_is_better else value <= bound


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve, for pictures and for whoever wants to draw others.

    :param name: which picture it belongs to. :param label: which curve it is.
    """

    name: str
    label: str
    xs: list[float]
    ys: list[float]


@dataclass(kw_only=True)
class Chapter:
    """What one part of the bench has found.

    :param name: of the part. :param title: for readers.
    :param figures: see `Figure`. :param series: see `Series`.
    :param texts: tables and remarks, in Markdown.
    :param skipped: what was not measured, and why.
    :param pictures: names of files beside the report.
    """

    name: str
    title: str
    figures: list[Figure] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


async def in_turns(
    contestants: Mapping[str, Callable[[], Awaitable[Measured]]], times: int
) -> dict[str, list[Measured]]:
    """Let each measure once, then each again, and so on; every other round backwards, so that none is always first.

    :param contestants: by name.
    :param times: rounds.
    :returns: what each measured, in the order of the rounds.
    """
    found: dict[str, list[Measured]] = {name: [] for name in contestants}
    for number in range(times):
        for name in list(contestants)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(await contestants[name]())
    return found


def percentile(values: Sequence[float], share: float) -> float:
    """The least of the values that so large a share of them does not exceed.

    :param share: more than 0, at most 1.
    """
    if not values:
        msg = "there is nothing to take a percentile of"
        raise ValueError(msg)
    ordered = sorted(values)
    # The nearest rank: one of the values and never one between them.
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(rank, 1) - 1]
