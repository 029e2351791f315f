"""Which records of a batch have a flaw, and what it is: rejections are made of that when nothing more is to come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Flaw(NamedTuple):
    """What is wrong with a record.

    :param column, code, reason: those of its `Rejection`.
    """

    column: str | None
    code: str
    reason: str


class Flaws:
    """The flaws of a batch's records: of each record one at most, the first that is found.

    Memory: 4 bytes for each record, and each flaw once, however many records have it.

    :param records: how many there are.
    """

    def __init__(self, records: int) -> None:
        self._numbers: npt.NDArray[np.int32] = np.zeros(records, np.int32)
        #: Their numbers, from 1.
        self._known: dict[Flaw, int] = {}

    def add(self, records: npt.NDArray[np.int64], flaw: Flaw) -> None:
        """All these records have this flaw."""
        self.add_each(records, [flaw], np.zeros(records.size, np.int64))

    def add_each(
        self, records: npt.NDArray[np.int64], flaws: Sequence[Flaw | None], which: npt.NDArray[np.integer[Any]]
    ) -> None:
        """Each of these records has one of some flaws.

        :param flaws: `None` is none.
        :param which: for each of the records the place of its flaw in `flaws`.
        """
        if records.size:
            numbers = np.array([self._number(flaw) for flaw in flaws], np.int32)[which]
            before = self._numbers[records]
            self._numbers[records] = np.where(before == 0, numbers, before)

    def _number(self, flaw: Flaw | None) -> int:
        return 0 if flaw is None else self._known.setdefault(flaw, len(self._known) + 1)

    def copy(self) -> Flaws:
        """The same, to go on with."""
        copy = Flaws(0)
        copy._numbers, copy._known = self._numbers.copy(), self._known.copy()
        return copy

    def __bool__(self) -> bool:
        return bool(self._known)

    @property
    def flawless(self) -> npt.NDArray[np.bool_]:
        """For each record whether it has none."""
        flawless: npt.NDArray[np.bool_] = self._numbers == 0
        return flawless

    @property
    def records(self) -> npt.NDArray[np.int64]:
        """The records that have one, by their numbers, ascending."""
        return np.flatnonzero(self._numbers)

    def of(self, records: npt.NDArray[np.int64]) -> Iterator[Flaw]:
        """The flaws of these records, each of which has one."""
        known = list(self._known)
        return (known[number - 1] for number in self._numbers[records].tolist())

    @property
    def size_bytes(self) -> int:
        """Bytes held, but for the text of the flaws."""
        return self._numbers.nbytes
