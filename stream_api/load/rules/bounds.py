"""`min` and `max` of a column, compared as its type compares."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import partial
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from stream_api.datasets.plan import PlanColumn
from stream_api.load.columns.base import Bools, Typed, as_bools, only

#: The stubs of Arrow's functions know too little.
pc: Final[Any] = pyarrow.compute

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECONDS: Final = 1_000_000
#: So far apart, as a share of the bound, floating point tells two numbers from each other for sure.
_SURE: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Range:
    """What a column's values must lie in.

    :param type: of the column, for SQL, from the catalogue. :param base: the type that the comparison is made in.
    :param least: and `greatest`: as text, `None` for no bound; both are allowed.
    """

    type: str
    base: str
    least: str | None
    greatest: str | None

    @classmethod
    def of(cls, column: PlanColumn) -> Self | None:
        """That of a column, if its rules have one."""
        rules = column.rules
        if rules is None or rules.base is None or (rules.min is None and rules.max is None):
            return None
        # Integers are compared with fractions, and numbers of few digits with those of more.
        base = rules.base if rules.base in _COMPARED_AS_THEY_ARE else "numeric"
        return cls(column.type, base, rules.min, rules.max)

    def __str__(self) -> str:
        said = (("min", self.least), ("max", self.greatest))
        return " and ".join(f"{key} = {value}" for key, value in said if value is not None)


_COMPARED_AS_THEY_ARE: Final = frozenset({"float4", "float8", "date", "time", "timestamp", "timestamptz"})

#: Which values lie outside; only of those that the fast path does not doubt.
Outside = Callable[[pa.StringArray, Typed], Bools]


def outside(column: PlanColumn, wanted: Range) -> Outside | None:
    """A test for the values that the column's fast path reads; `None` where it reads none, and PostgreSQL is asked."""
    found: Outside | None = None
    match column.kind:
        case "int2" | "int4" | "int8":
            found = _integers(wanted)
        case "float4":
            found = _floats(wanted, np.float32)
        case "float8":
            found = _floats(wanted, np.float64)
        case "date" | "time" | "timestamp" | "timestamptz":
            found = _moments(wanted)
        case "numeric" | "other_number":
            found = partial(_decimals, wanted)
    return found


def _integers(wanted: Range) -> Outside:
    least = None if wanted.least is None else math.ceil(Decimal(wanted.least))
    greatest = None if wanted.greatest is None else math.floor(Decimal(wanted.greatest))
    return lambda _, typed: _beyond(typed.array, pa.int64(), least, greatest)


def _floats(wanted: Range, number: type[np.floating[Any]]) -> Outside:
    # As PostgreSQL reads the bound in the column's own type.
    least = None if wanted.least is None else number(wanted.least)
    greatest = None if wanted.greatest is None else number(wanted.greatest)
    return lambda _, typed: _beyond(typed.array, None, least, greatest)


def _moments(wanted: Range) -> Outside:
    numbers = pa.int32() if wanted.base == "date" else pa.int64()
    least = None if wanted.least is None else _moment(wanted.least, wanted.base)
    greatest = None if wanted.greatest is None else _moment(wanted.greatest, wanted.base)
    return lambda _, typed: _beyond(typed.array, numbers, least, greatest)


def _moment(text: str, base: str) -> int:
    """A bound as the number by which Arrow has such values."""
    if base == "date":
        return (date.fromisoformat(text) - _EPOCH.date()).days
    if base == "time":
        of_day = time.fromisoformat(text)
        seconds = (of_day.hour * 60 + of_day.minute) * 60 + of_day.second
        return seconds * _MICROSECONDS + of_day.microsecond
    since = datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH
    return (since.days * 86_400 + since.seconds) * _MICROSECONDS + since.microseconds


def _beyond(array: pa.Array[Any] | None, numbers: pa.DataType | None, least: Any, greatest: Any) -> Bools:
    assert array is not None  # noqa: S101 (these kinds have a binary form)
    valid = as_bools(array.is_valid())
    if numbers is not None:
        array = array.cast(numbers)
    found: npt.NDArray[Any] = pc.fill_null(array, 0).to_numpy()
    wrong = np.zeros(len(found), np.bool_)
    if least is not None:
        wrong |= found < least
    if greatest is not None:
        wrong |= found > greatest
    return wrong & valid


def _decimals(wanted: Range, values: pa.StringArray, typed: Typed) -> Bools:
    """Decimals, or plain numbers as text: by floating point where that is sure, and exactly beside the bounds."""
    array: pa.Array[Any] = values if typed.array is None else typed.array
    if typed.array is None and typed.doubtful is not None:
        array = only(values, pa.array(~typed.doubtful))
    valid = as_bools(array.is_valid())
    try:
        rough: npt.NDArray[np.float64] = pc.fill_null(pc.cast(array, pa.float64()), 0.0).to_numpy()
    except pa.ArrowInvalid:
        # Too many digits for it.
        rough = np.full(len(array), np.nan)
    wrong = np.zeros(len(array), np.bool_)
    for text, sign in ((wanted.least, 1), (wanted.greatest, -1)):
        if text is None:
            continue
        bound = Decimal(text)
        distance = sign * (rough - float(bound))
        sure = np.abs(distance) > abs(float(bound)) * _SURE
        wrong |= sure & (distance < 0)
        near = np.flatnonzero(~sure & valid)
        if near.size:
            wrong[near] |= _exactly(array.take(near), bound, sign)
    return wrong & valid


def _exactly(array: pa.Array[Any], bound: Decimal, sign: int) -> Bools:
    """Each different value is looked at once: beside a bound it is mostly the bound itself."""
    encoded: Any = array.dictionary_encode()
    answers = np.array([sign * Decimal(value).compare(bound) < 0 for value in encoded.dictionary.to_pylist()], np.bool_)
    chosen: Bools = answers[encoded.indices.to_numpy()]
    return chosen
