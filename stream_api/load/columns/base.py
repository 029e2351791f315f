"""What a fast path over a column of text gives, and the small steps that all of them are made of.

A fast path is *sound*: of a value that it does not doubt, Postgres stores exactly what the typed form says. It need not
be complete: what it doubts, Postgres itself is asked about. Patterns are RE2's, matched by Arrow without the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Typed:
    """A column as read.

    :param array: in the form that pgpq encodes exactly; null where the text is null or doubtful. `None` when the
        column's type has no binary form.
    :param doubtful: the values that only Postgres can judge; never set for a null. `None` when there are none.
    """

    array: pa.Array[Any] | None
    doubtful: Bools | None = None


#: Reads a string column. Called in worker threads, several at once.
Reader = Callable[[pa.StringArray], Typed]


def matching(values: pa.StringArray, pattern: str) -> pa.BooleanArray:
    """Which values match the pattern as a whole; null for null."""
    return pc.match_substring_regex(values, rf"\A(?:{pattern})\z")


def every(mask: pa.BooleanArray) -> bool:
    """Whether the mask is true for every value but the nulls."""
    return bool(pc.all(mask, skip_nulls=True, min_count=0).as_py())


def only(values: pa.Array[Any], mask: pa.BooleanArray) -> pa.Array[Any]:
    """The values where the mask is true, null elsewhere."""
    return values if every(mask) else pc.if_else(mask, values, pa.scalar(None, values.type))


def doubts(mask: pa.BooleanArray) -> Bools | None:
    """The values for which the mask is false; a null is no doubt."""
    if every(mask):
        return None
    return ~as_bools(mask.fill_null(True))


def as_bools(mask: pa.Array[Any]) -> Bools:
    """A mask without nulls, for numpy."""
    bools: Bools = mask.to_numpy(zero_copy_only=False)
    return bools


def read_nothing(values: pa.StringArray) -> Typed:
    """Types without a fast path: every value is doubtful."""
    if values.null_count == len(values):
        return Typed(None)
    return Typed(None, as_bools(values.is_valid()))
