"""The first half of a column's rules: what they make of its fields before the column's type reads them.

Every step takes a whole column, and a step that finds nothing to do gives back what it was given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute

from stream_api.datasets.rules import Rules
from stream_api.load.columns.base import as_bools, every, matching
from stream_api.load.rules.faults import Fault, Found
from stream_api.load.rules.moments import Moments

#: The stubs of Arrow's functions know neither texts for scalars nor what an array of texts gives.
pc: Final[Any] = pyarrow.compute

_NULL: Final = pa.scalar(None, pa.string())

#: Makes other texts of texts.
Step = Callable[[pa.StringArray], pa.StringArray]


class Cleaner:
    """Cleans a column: trim, null markers, default, case; then dates, times and numbers as PostgreSQL reads them.

    :param base: the type under the column's, where formats need it.
    """

    def __init__(self, rules: Rules, base: str) -> None:
        self._steps: list[Step] = []
        if rules.trim:
            self._steps.append(_trimmed)
        if rules.null:
            self._steps.append(_without_markers(rules.null))
        if rules.default is not None:
            self._steps.append(_filled(rules.default))
        if rules.case is not None:
            self._steps.append(pc.utf8_upper if rules.case == "upper" else pc.utf8_lower)
        self._read: Step | None = None
        self._fault = Fault("", "")
        if rules.formats:
            self._read = Moments(rules.formats, base).read
            self._fault = Fault("invalid_date", f"The value fits none of the formats {', '.join(rules.formats)}")
        elif rules.decimal != "." or rules.thousands:
            self._read = _number_reader(rules.decimal, rules.thousands)
            thousands = f" and thousands = {rules.thousands!r}" if rules.thousands else ""
            self._fault = Fault("invalid_number", f"The value is no number with decimal = {rules.decimal!r}{thousands}")

    def clean(self, values: pa.StringArray) -> tuple[pa.StringArray, Found | None]:
        """The cleaned values, and those that no format fits; these are null."""
        for step in self._steps:
            values = step(values)
        if self._read is None:
            return values, None
        read = self._read(values)
        if read.null_count == values.null_count:
            return read, None
        return read, Found(as_bools(read.is_null()) & as_bools(values.is_valid()), self._fault)


def _trimmed(values: pa.StringArray) -> pa.StringArray:
    """Without white space at both ends; what was nothing else is null, and `""` stays what it is."""
    trimmed: pa.StringArray = pc.utf8_trim_whitespace(values)
    emptied = pc.and_(pc.equal(trimmed, ""), pc.not_equal(values, ""))
    if pc.any(emptied).as_py():
        trimmed = pc.if_else(emptied, _NULL, trimmed)
    return trimmed


def _without_markers(markers: tuple[str, ...]) -> Step:
    value_set = pa.array(markers, pa.string())

    def step(values: pa.StringArray) -> pa.StringArray:
        marked = pc.is_in(values, value_set=value_set)
        if pc.any(marked).as_py():
            values = pc.if_else(marked, _NULL, values)
        return values

    return step


def _filled(default: str) -> Step:
    return lambda values: pc.fill_null(values, default) if values.null_count else values


def _number_reader(decimal: str, thousands: str) -> Step:
    """Numbers with other signs, as PostgreSQL writes them. Groups must be of three digits: `1.5` is no 15.

    Words pass: the type knows `NaN` and the like.
    """
    point, group = re.escape(decimal), re.escape(thousands)
    whole = rf"[0-9]{{1,3}}(?:{group}[0-9]{{3}})+|[0-9]+" if thousands else "[0-9]+"
    number = rf"[+-]?(?:(?:{whole})(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?"
    pattern = rf"\s*(?:{number}|[+-]?[A-Za-z]+)\s*"

    def step(values: pa.StringArray) -> pa.StringArray:
        mask = matching(values, pattern)
        if not every(mask):
            values = pc.if_else(mask, values, _NULL)
        if thousands:
            values = pc.replace_substring(values, thousands, "")
        if decimal != ".":
            values = pc.replace_substring(values, decimal, ".")
        return values

    return step
