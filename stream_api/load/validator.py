"""Which rows the table takes, and in which form they go there. Postgres has the last word on every value."""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar, TypeVarTuple, Unpack, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stream_api.datasets.plan import Plan, PlanColumn
from stream_api.load.columns.base import Bools, as_bools
from stream_api.load.columns.readers import column_reader
from stream_api.load.encoder import BinaryEncoder, encode_csv
from stream_api.load.judge import Judge, Question, Refusal
from stream_api.load.model import Encoded, Rows
from stream_api.load.rejects import Rejection, Rejects

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Rejections that are made of arrays at once: what they are made of weighs some 200 bytes for each.
_TOGETHER: Final = 4096
#: What a SQLSTATE says better than the column's type does.
_NUMBER_CODES: Final = {"22003": "number_out_of_range"}
_DATE_CODES: Final = {"22008": "date_out_of_range"}
_CODES: Final = {"22001": "too_long", "23502": "missing_value", "23514": "invalid_value"}
_CODES_BY_KIND: Final = {
    "invalid_number": _NUMBER_CODES,
    "invalid_date": _DATE_CODES,
    "invalid_value": _NUMBER_CODES | _DATE_CODES,
}


class RunInThread(Protocol):
    """Runs a function in a worker thread."""

    def __call__(self, function: Callable[[Unpack[Ts]], T], /, *args: *Ts) -> Awaitable[T]:
        """The function's result."""
        ...


@dataclass(frozen=True, slots=True)
class _Asked:
    """A doubtful value: where it stands in the batch, and what is asked about it."""

    row: int
    column: int
    question: Question


@dataclass(frozen=True, slots=True)
class _Checked:
    """A batch after the fast path.

    :param texts: the columns of the plan as text.
    :param arrays: the typed columns; `None` for those that have no binary form.
    :param blamed: for each row the first column, by number, known to be at fault; the number of columns if none.
    :param asked: what only Postgres can tell.
    """

    rows: Rows
    texts: list[pa.StringArray]
    arrays: list[pa.Array[Any] | None]
    blamed: npt.NDArray[np.intp]
    asked: list[_Asked]


class Validator:
    """Checks batches of rows against a plan and encodes those that the table takes.

    :param plan: what the rows go into.
    :param judge: is asked about what the fast path doubts, in one go for each batch that has doubts.
    :param run_in_thread: takes the work off the event loop; a batch without doubts is one call.
    """

    def __init__(self, plan: Plan, judge: Judge, run_in_thread: RunInThread) -> None:
        self._columns = plan.columns
        self._readers = [column_reader(column, encoding=plan.encoding) for column in plan.columns]
        self._encoder = BinaryEncoder(plan.columns) if plan.copy_format == "binary" else None
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
        refusals = await self._judge.ask(asked.question for asked in first.asked)
        return await self._run_in_thread(self._encode, first, refusals)

    def _check_and_encode(self, rows: Rows) -> Encoded | _Checked:
        checked = self._check(rows)
        return checked if checked.asked else self._encode(checked, {})

    def _check(self, rows: Rows) -> _Checked:
        none = len(self._columns)
        blamed = np.full(rows.table.num_rows, none, np.intp)
        texts: list[pa.StringArray] = []
        arrays: list[pa.Array[Any] | None] = []
        asked: list[_Asked] = []
        for number, (column, reader) in enumerate(zip(self._columns, self._readers, strict=True)):
            values = _values(column, rows)
            texts.append(values)
            typed = reader(values)
            arrays.append(typed.array)
            # What an earlier column is to blame for needs no further question.
            if typed.doubtful is not None:
                asked += _questions(number, column, values, typed.doubtful & (blamed == none))
            if values.null_count and (column.required or column.judge_null):
                empty = as_bools(values.is_null()) & (blamed == none)
                if column.required:
                    blamed[empty] = number
                else:
                    question = Question(column.type, None)
                    asked += [_Asked(int(row), number, question) for row in np.flatnonzero(empty)]
        return _Checked(rows, texts, arrays, blamed, asked)

    def _encode(self, checked: _Checked, refusals: dict[Question, Refusal]) -> Encoded:
        rows, blamed = checked.rows, checked.blamed
        none = len(self._columns)
        by_csv = np.zeros(len(blamed), np.bool_)
        reasons: dict[int, Refusal] = {}
        for asked in checked.asked:
            by_csv[asked.row] = True
            refusal = refusals.get(asked.question)
            if refusal is not None and asked.column < blamed[asked.row]:
                blamed[asked.row] = asked.column
                reasons[asked.row] = refusal
        good = blamed == none
        by_csv = good & by_csv if self._encoder is not None else good
        by_binary = good & ~by_csv
        return Encoded(
            span=rows.batch.span,
            read=rows.read,
            binary=self._encode_binary(checked.arrays, by_binary),
            binary_lines=rows.lines[by_binary],
            csv=encode_csv(_rows_of(checked.texts, by_csv)) if by_csv.any() else b"",
            csv_lines=rows.lines[by_csv],
            rejections=self._reject(rows, blamed, reasons),
            header=rows.batch.header,
        )

    def _encode_binary(self, arrays: list[pa.Array[Any] | None], keep: Bools) -> tuple[bytes | memoryview, ...]:
        typed = [array for array in arrays if array is not None]
        if self._encoder is None or not keep.any():
            return ()
        return self._encoder.encode(typed, None if keep.all() else pa.array(keep))

    def _reject(self, rows: Rows, blamed: npt.NDArray[np.intp], reasons: dict[int, Refusal]) -> Rejects:
        """The rejections of the batch, those of the parser among them, in the file's order."""
        found = np.flatnonzero(blamed < len(self._columns))
        if not found.size:
            return rows.rejections
        refused = self._refused(rows, found, blamed, reasons)
        return Rejects.pack(heapq.merge(rows.rejections, refused, key=lambda rejection: rejection.offset))

    def _refused(
        self, rows: Rows, found: npt.NDArray[np.intp], blamed: npt.NDArray[np.intp], reasons: dict[int, Refusal]
    ) -> Iterator[Rejection]:
        for first in range(0, found.size, _TOGETHER):
            some = found[first : first + _TOGETHER]
            offsets = rows.offsets[some]
            places = zip(some.tolist(), blamed[some].tolist(), rows.lines[some].tolist(), offsets.tolist(), strict=True)
            for (row, to_blame, line, offset), record in zip(places, rows.batch.records(offsets), strict=True):
                column, refusal = self._columns[to_blame], reasons.get(row)
                if refusal is None:
                    code, reason = "missing_value", f'null value in column "{column.name}" violates not-null constraint'
                else:
                    code, reason = rejection_code(column, refusal.sqlstate), refusal.message
                yield Rejection(line, offset, column.source, code, reason, record)


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


def _questions(number: int, column: PlanColumn, values: pa.StringArray, doubtful: Bools) -> list[_Asked]:
    places = np.flatnonzero(doubtful)
    texts = values.filter(pa.array(doubtful)).to_pylist()
    return [_Asked(int(row), number, Question(column.type, text)) for row, text in zip(places, texts, strict=True)]
