"""A column's rules as the validator applies them: cleaning before the column's type, checks after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute

from stream_api.datasets.plan import PlanColumn
from stream_api.load.columns.base import Bools, Typed, as_bools, every, matching
from stream_api.load.rules.bounds import Range, outside
from stream_api.load.rules.cleaning import Cleaner
from stream_api.load.rules.faults import Fault, Found

#: The stubs of Arrow's functions know too little.
pc: Final[Any] = pyarrow.compute
#: Characters of a rule that a reason shows: each rejected row has it.
_SHOWN_CHARACTERS: Final = 300
#: Allowed values that a reason names.
_SHOWN_VALUES: Final = 10


class AppliedRules:
    """The rules of one column, made ready; called in worker threads, several at once.

    :param range: to be asked of PostgreSQL for the values that it alone can read; `None` for any.
    """

    def __init__(self, column: PlanColumn) -> None:
        rules = column.rules
        assert rules is not None  # noqa: S101 (see `column_rules`)
        self._rules = rules
        cleaner = Cleaner(rules, rules.base or "")
        self.clean = cleaner.clean
        self.range = Range.of(column)
        self._outside = None if self.range is None else outside(column, self.range)
        self._values = None if rules.values is None else pa.array(rules.values, pa.string())
        self._missing = Fault("missing_value", "The dataset requires a value here")
        self._not_allowed = Fault("not_allowed", f"The value is none of those allowed: {_shown(rules.values or ())}")
        self._mismatch = Fault(
            "pattern_mismatch", f"The value does not match the pattern {_short(rules.pattern or '')}"
        )
        self.out_of_range = Fault("out_of_range", f"The value is out of range: {self.range}")

    def check(self, values: pa.StringArray, typed: Typed) -> Iterator[Found]:
        """The values that break a rule, those of the first rule first.

        :param values: cleaned. :param typed: as the fast path has read them.
        """
        if self._rules.required and values.null_count:
            yield Found(as_bools(values.is_null()), self._missing)
        if self._values is not None:
            allowed = pc.is_in(values, value_set=self._values)
            if not every(allowed):
                yield Found(_valid(values) & ~as_bools(allowed), self._not_allowed)
        if self._outside is not None:
            wrong = self._outside(values, typed)
            if wrong.any():
                yield Found(wrong, self.out_of_range)
        if self._rules.pattern is not None:
            matched = matching(values, self._rules.pattern)
            if not every(matched):
                yield Found(~as_bools(pc.fill_null(matched, fill_value=True)), self._mismatch)


def column_rules(column: PlanColumn) -> AppliedRules | None:
    """The rules of a column, if it has any."""
    return None if column.rules is None else AppliedRules(column)


def _valid(values: pa.StringArray) -> Bools:
    return as_bools(values.is_valid())


def _shown(values: tuple[str, ...]) -> str:
    more = ", …" if len(values) > _SHOWN_VALUES else ""
    return _short(", ".join(map(_short, values[:_SHOWN_VALUES]))) + more


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
