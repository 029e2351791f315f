"""What the target table says of a segment's rows that lie in a table of ours: most go in, and the rest are rejected.

A segment comes here when Postgres has refused a row of it: then it is read again by its range, into the holding table.
Or it lies in a table of ours already, since rows may have the key of others (`conflict`), or all are to go in together.

All of that happens in the transaction of the segment, behind the fence and the claim of its ledger row.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, Protocol

import asyncpg
import msgspec
import numpy as np

from stream_api.datasets.plan import Plan
from stream_api.load.copying import copy_in
from stream_api.load.holding import REFUSED, ROWS, create_holding, held, rows_of
from stream_api.load.inserting import NO_LINE, Source, insert_rows
from stream_api.load.judge import Judge
from stream_api.load.model import Batch, Int64s
from stream_api.load.parser import Parser
from stream_api.load.pieces import pieces
from stream_api.load.reader import RunInThread
from stream_api.load.rejects import Rejection, Rejects
from stream_api.load.target import look_at
from stream_api.load.validator import Validator
from stream_api.load.violations import REASON_CHARACTERS, code_of, reason_of

_INDEX: Final = f"CREATE INDEX IF NOT EXISTS stream_api_rows_line ON {ROWS} (line);"
#: Refused rows that are fetched together: each comes with words of Postgres, some kilobyte, and a batch may have a
#: quarter of a million.
_PAGE: Final = 4096
_REFUSED: Final = f"""
SELECT line, state, left(message, $3) AS message, left(detail, $3) AS detail, column_name
FROM {REFUSED} WHERE line >= $1 AND line < $2 ORDER BY line LIMIT $4
"""  # noqa: S608 (a constant of this package)


class ReadAgain(Protocol):
    """Reads a segment once more and cuts it into the batches that it had."""

    def __call__(self, start: int, end: int, line: int, /) -> Awaitable[list[Batch]]:
        """The batches of bytes [start, end) of the decoded file, which begin on this line."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of a segment's rows."""

    rows_read: int
    rows_inserted: int
    rows_skipped: int
    rejects: Rejects
    rows_updated: int = 0


@dataclass(slots=True)
class Held:
    """A segment whose rows lie in a table of ours.

    :param start, end, first_line: where it lies in the file. :param next_line: on which the next one begins.
    :param read: its rows, those rejected before included.
    :param rows: of them those that lie in the table.
    :param rejections: those before, in the file's order.
    :param batches: its bytes, where somebody has them at hand.
    """

    start: int
    end: int
    first_line: int
    read: int = 0
    rows: int = 0
    rejections: list[Rejects] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    next_line: int = NO_LINE


class Sieve:
    """Sifts segments of one load; used by all its lanes.

    Memory, for each lane that sifts: see `memory_bytes`.

    :param plan: of the load.
    """

    def __init__(
        self, plan: Plan, *, read_again: ReadAgain, parser: Parser, judge: Judge, run_in_thread: RunInThread
    ) -> None:
        self._plan = plan
        self._read_again = read_again
        self._parser = parser
        # As text: those few rows that have no binary form would have to be held until the others are sent.
        self._validator = Validator(msgspec.structs.replace(held(plan), copy_format="csv"), judge, run_in_thread)
        self._run_in_thread = run_in_thread
        self._sources = {column.name: column.source for column in plan.columns}

    @staticmethod
    def memory_bytes(*, segment: int, batch: int, record: int) -> int:
        """The most that one lane holds: the segment, and a batch as rows and as text, while it is sent; or rejections.

        Those weigh no more than the segment, since they are compressed, and once more while they are joined. The
        batches that they are made of go one by one.
        """
        return max(segment + record + 5 * batch, 2 * (segment + record))

    async def prepare(self, connection: asyncpg.Connection) -> None:
        """Make the tables of a lane, before the transaction of a segment.

        :raises CannotSift: there can be none, or the target is not as it must be.
        """
        target = await look_at(connection, self._plan)
        await create_holding(connection, self._plan, target.collations)

    async def read_into(self, connection: asyncpg.Connection, start: int, end: int, line: int) -> Held:
        """Read a segment again, and copy its rows into the holding table, which is empty."""
        segment = Held(start, end, line, batches=await self._read_again(start, end, line))
        taken = await copy_in(connection, rows_of(self._plan), self._rows(segment), "csv")
        if taken != segment.rows:
            msg = f"{segment.rows} rows were sent to the holding table and it took {taken}"
            raise ValueError(msg)
        return segment

    async def load(self, connection: asyncpg.Connection, segment: Held, *, whole: bool) -> Loaded:
        """Put a segment's rows from the holding table into the target, in the caller's transaction.

        :param whole: see `insert_rows`.
        :raises CannotSift: nothing has been changed but what the rollback takes back.
        :raises asyncpg.PostgresError: what is no row's fault.
        """
        target = await look_at(connection, self._plan)
        source = Source(ROWS, segment.rows, index=_INDEX)
        done = await insert_rows(connection, self._plan, target, source, whole=whole)
        if done.refused:
            rejects = await self.rejects(connection, segment)
        else:
            rejects = Rejects.join(segment.rejections)
        return Loaded(
            rows_read=segment.read,
            rows_inserted=done.inserted,
            rows_updated=done.updated,
            rows_skipped=segment.rows - done.refused - done.inserted - done.updated,
            rejects=rejects,
        )

    async def _rows(self, segment: Held) -> AsyncIterator[bytes | memoryview]:
        """The rows of the batches as text, while the segment's figures are noted."""
        for batch in segment.batches:
            rows = await self._run_in_thread(self._parser.parse, batch)
            encoded = await self._validator.validate(rows)
            del rows
            segment.read += encoded.read
            segment.rows += encoded.csv_lines.size
            if encoded.rejections:
                segment.rejections.append(encoded.rejections)
            async for piece in pieces(encoded.csv):
                yield piece

    async def rejects(self, connection: asyncpg.Connection, segment: Held) -> Rejects:
        """The rejections of before, and the rows that the table has refused: their records are in the file.

        :raises Failure: of the store.
        """
        batches = segment.batches or await self._read_again(segment.start, segment.end, segment.first_line)
        segment.batches = []
        # A line may be without an end, but only the file's last.
        ends = [*(batch.first_line for batch in batches[1:]), segment.next_line]
        refused: list[Rejects] = []
        for end in ends:
            refused += await self._refused(connection, batches.pop(0), end)
        return await self._run_in_thread(_merged, segment.rejections, refused)

    async def _refused(self, connection: asyncpg.Connection, batch: Batch, end: int) -> list[Rejects]:
        """The refused rows of a batch, whose lines are before `end`."""
        packed, first = list[Rejects](), batch.first_line
        places: tuple[Int64s, Int64s] | None = None
        while found := await connection.fetch(_REFUSED, first, end, REASON_CHARACTERS, _PAGE):
            if places is None:
                places = await self._run_in_thread(self._places, batch)
            packed.append(await self._run_in_thread(self._rejections, batch, *places, found))
            first = found[-1]["line"] + 1
        return packed

    def _places(self, batch: Batch) -> tuple[Int64s, Int64s]:
        rows = self._parser.parse(batch)
        return rows.lines, rows.offsets

    def _rejections(self, batch: Batch, lines: Int64s, offsets: Int64s, refused: Sequence[Any]) -> Rejects:
        places = np.searchsorted(lines, np.fromiter((row["line"] for row in refused), np.int64, len(refused)))
        lines, offsets = lines[places], offsets[places]

        def rejections() -> Iterator[Rejection]:
            found = zip(refused, lines.tolist(), offsets.tolist(), batch.records(offsets), strict=True)
            for row, line, offset, record in found:
                column = row["column_name"] or None
                yield Rejection(
                    line,
                    offset,
                    None if column is None else self._sources.get(column, column),
                    code_of(row["state"]),
                    reason_of(row["state"], row["message"], row["detail"]),
                    record,
                )

        return Rejects.pack(rejections())


def _merged(before: Sequence[Rejects], refused: Sequence[Rejects]) -> Rejects:
    if not any(before):
        return Rejects.join(refused)
    parts = (chain.from_iterable(before), chain.from_iterable(refused))
    return Rejects.pack(heapq.merge(*parts, key=lambda each: each.offset))
