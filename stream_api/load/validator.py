"""Which rows the table takes, and in which form they go there. Postgres has the last word on every value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple, Unpack, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stream_api.datasets.plan import Plan, PlanColumn
from stream_api.load.columns.base import Bools, as_bools
from stream_api.load.columns.readers import column_reader
from stream_api.load.encoder import binary_encoder, encode_csv
from stream_api.load.flaws import Flaw
from stream_api.load.judge import Judge, Question, Refusal
from stream_api.load.model import Encoded, Int64s, Rows
from stream_api.load.rejects import Rejects
from stream_api.load.rules.faults import Found
from stream_api.load.rules.stage import AppliedRules, column_rules

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: What a SQLSTATE says better than the column's type does.
_NUMBER_CODES: Final = {"22003": "number_out_of_range"}
_DATE_CODES: Final = {"22008": "date_out_of_range"}
_CODES: Final = {"22001": "too_long", "23502": "missing_value", "23514": "invalid_value"}
_CODES_BY_KIND: Final = {
    "invalid_number": _NUMBER_CODES,
    "invalid_date": _DATE_CODES,
    "invalid_value": _NUMBER_CODES | _DATE_CODES,
}

_NO_LINES: Final[Int64s] = np.zeros(0, np.int64)


class RunInThread(Protocol):
    """Runs a function in a worker thread."""

    def __call__(self, function: Callable[[Unpack[Ts]], T], /, *args: *Ts) -> Awaitable[T]:
        """The function's result."""
        ...


@dataclass(frozen=True, slots=True)
class _Doubts:
    """The doubtful values of a column.

    :param column: its number.
    :param rows: where they stand in the batch.
    :param questions: what is asked: about each value once.
    :param which: for each of the rows the place of its question in `questions`.
    """

    column: int
    rows: npt.NDArray[np.intp]
    questions: list[Question]
    which: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class _Checked:
    """A batch after the fast path.

    :param texts: the columns of the plan as text.
    :param arrays: the typed columns; `None` for those that have no binary form.
    :param blamed: for each row the first column, by number, that lacks a value or breaks a rule of the dataset; the
        number of columns if none.
    :param broken: the rows that break rules, and which.
    :param doubts: what only Postgres can tell, in the order of the columns.
    """

    rows: Rows
    texts: list[pa.StringArray]
    arrays: list[pa.Array[Any] | None]
    blamed: npt.NDArray[np.intp]
    broken: list[tuple[npt.NDArray[np.intp], Flaw]]
    doubts: list[_Doubts]

    @property
    def clean(self) -> bool:
        """Whether every record is a row that nothing is wrong with, as in most batches."""
        wrong = self.rows.flaws or self.doubts or self.broken
        return not wrong and bool((self.blamed == len(self.texts)).all())

    def blame(self, number: int, column: PlanColumn, found: Found | None) -> None:
        """Note the rows that break a rule of a column, but for those that an earlier column is to blame for."""
        if found is not None:
            rows = np.flatnonzero(found.rows & (self.blamed > number))
            self.blamed[rows] = number
            self.broken.append((rows, Flaw(column.source, found.fault.code, found.fault.reason)))


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What Postgres says.

    :param refusals: by their questions. :param outside: numbers of columns, with values that are out of their range.
    """

    refusals: Mapping[Question, Refusal] = field(default_factory=dict)
    outside: Collection[tuple[int, str | None]] = ()


class Validator:
    """Checks batches of rows against a plan and encodes those that the table takes.

    :param plan: what the rows go into.
    :param judge: is asked about what the fast path doubts, in one go for each batch that has doubts.
    :param run_in_thread: takes the work off the event loop; a batch without doubts is one call.
    """

    def __init__(self, plan: Plan, judge: Judge, run_in_thread: RunInThread) -> None:
        self._columns = plan.columns
        self._readers = [column_reader(column, encoding=plan.encoding) for column in plan.columns]
        self._rules = [column_rules(column) for column in plan.columns]
        self._encoder = binary_encoder(plan)
        self._judge = judge
        self._run_in_thread = run_in_thread

    async def validate(self, rows: Rows) -> Encoded:
        """Sort a batch's rows into binary rows, CSV rows and rejections.

        A row that fails in several columns is rejected once, for the first of them in the file's order.

        Holds, beside the rows, their typed columns (at most some 16 bytes for each field, and the text once more)
        and the encoded pieces.

        :raises Failure: see `Judge.ask`.
        """
        first = await self._run_in_thread(self._check_and_encode, rows)
        if isinstance(first, Encoded):
            return first
        refusals = await self._judge.ask(question for doubts in first.doubts for question in doubts.questions)
        outside = set[tuple[int, str | None]]()
        for doubts in first.doubts:
            rules = self._rules[doubts.column]
            if rules is not None and rules.range is not None:
                taken = [q.value for q in doubts.questions if q.value is not None and q not in refusals]
                outside |= {(doubts.column, value) for value in await self._judge.outside(rules.range, taken)}
        return await self._run_in_thread(self._encode, first, _Verdict(refusals, outside))

    def _check_and_encode(self, rows: Rows) -> Encoded | _Checked:
        checked = self._check(rows)
        return checked if checked.doubts else self._encode(checked, _Verdict())

    def _check(self, rows: Rows) -> _Checked:
        none = len(self._columns)
        blamed = np.full(rows.table.num_rows, none, np.intp)
        checked = _Checked(rows, [], [], blamed, [], [])
        doubts = checked.doubts
        for number, (column, reader, rules) in enumerate(zip(self._columns, self._readers, self._rules, strict=True)):
            values = _values(column, rows)
            if rules is not None:
                values, unread = rules.clean(values)
                checked.blame(number, column, unread)
            checked.texts.append(values)
            typed = reader(values)
            checked.arrays.append(typed.array)
            # What an earlier column is to blame for needs no further question.
            if typed.doubtful is not None:
                doubts += _doubts(number, column, values, typed.doubtful & (blamed == none))
            if values.null_count and (column.required or column.judge_null):
                empty = as_bools(values.is_null()) & (blamed == none)
                if column.required:
                    blamed[empty] = number
                else:
                    doubts += _doubts(number, column, values, empty)
            if rules is not None:
                for found in rules.check(values, typed):
                    checked.blame(number, column, found)
        return checked

    def _encode(self, checked: _Checked, verdict: _Verdict) -> Encoded:
        rows = checked.rows
        if self._encoder is not None and checked.clean:
            return Encoded(
                span=rows.batch.span,
                read=rows.read,
                binary=self._encoder.encode(_typed(checked)),
                binary_lines=rows.lines,
                csv=b"",
                csv_lines=_NO_LINES,
                header=rows.batch.header,
            )
        by_csv = np.zeros(len(checked.blamed), np.bool_)
        for doubts in checked.doubts:
            by_csv[doubts.rows] = True
        good, rejections = self._judged(checked, verdict)
        by_csv = good & by_csv if self._encoder is not None else good
        by_binary = good & ~by_csv
        return Encoded(
            span=rows.batch.span,
            read=rows.read,
            binary=self._encode_binary(checked, by_binary),
            binary_lines=rows.lines[by_binary],
            csv=encode_csv(_rows_of(checked.texts, by_csv)) if by_csv.any() else b"",
            csv_lines=rows.lines[by_csv],
            rejections=rejections,
            header=rows.batch.header,
        )

    def _judged(self, checked: _Checked, verdict: _Verdict) -> tuple[Bools, Rejects]:
        """The rows without a flaw, and the rejections of the others, those of the parser among them."""
        rows, flaws = checked.rows, checked.rows.flaws.copy()
        for doubts in checked.doubts:
            column, rules = self._columns[doubts.column], self._rules[doubts.column]
            answers = [
                _refused(column, verdict.refusals.get(question))
                or (_out_of_range(column, rules) if (doubts.column, question.value) in verdict.outside else None)
                for question in doubts.questions
            ]
            flaws.add_each(rows.records[doubts.rows], answers, doubts.which)
        # Last: in the rows that were asked about, the columns that were asked about come first.
        for broken, flaw in checked.broken:
            flaws.add(rows.records[broken], flaw)
        for number, column in enumerate(self._columns):
            if column.required:
                flaws.add(rows.records[checked.blamed == number], _missing(column))
        return flaws.flawless[rows.records], Rejects.pack(rows.rejections(flaws))

    def _encode_binary(self, checked: _Checked, keep: Bools) -> tuple[bytes | memoryview, ...]:
        if self._encoder is None or not keep.any():
            return ()
        return self._encoder.encode(_typed(checked), None if keep.all() else pa.array(keep))


def _typed(checked: _Checked) -> list[pa.Array[Any]]:
    return [array for array in checked.arrays if array is not None]


def _missing(column: PlanColumn) -> Flaw:
    reason = f'null value in column "{column.name}" violates not-null constraint'
    return Flaw(column.source, "missing_value", reason)


def _refused(column: PlanColumn, refusal: Refusal | None) -> Flaw | None:
    if refusal is None:
        return None
    return Flaw(column.source, rejection_code(column, refusal.sqlstate), refusal.message)


def _out_of_range(column: PlanColumn, rules: AppliedRules | None) -> Flaw | None:
    return None if rules is None else Flaw(column.source, rules.out_of_range.code, rules.out_of_range.reason)


def _values(column: PlanColumn, rows: Rows) -> pa.StringArray:
    """A column of the plan as text."""
    if column.position is not None:
        return cast("pa.StringArray", rows.table.column(column.position))
    if column.computed == "line":
        return cast("pa.StringArray", pc.cast(pa.array(rows.lines), pa.string()))
    value = str(rows.batch.segment) if column.computed == "segment" else column.constant
    return pa.repeat(pa.scalar(value, pa.string()), rows.table.num_rows)


def _rows_of(texts: list[pa.StringArray], keep: Bools) -> pa.RecordBatch:
    names = [str(number) for number in range(len(texts))]
    return pa.RecordBatch.from_arrays(list(texts), names=names).filter(pa.array(keep))


def rejection_code(column: PlanColumn, sqlstate: str) -> str:
    """The code of a rejection: what the SQLSTATE says, else what the column's type says."""
    return _CODES.get(sqlstate) or _CODES_BY_KIND.get(column.code, {}).get(sqlstate) or column.code


def _doubts(number: int, column: PlanColumn, values: pa.StringArray, doubtful: Bools) -> Iterator[_Doubts]:
    if not doubtful.any():
        return
    texts = values.filter(pa.array(doubtful)).dictionary_encode("encode")
    questions = [Question(column.type, text) for text in texts.dictionary.to_pylist()]
    yield _Doubts(number, np.flatnonzero(doubtful), questions, texts.indices.to_numpy())
