"""Loads a segment of which Postgres refuses some rows: finds those, and puts all others into the table.

The segment is read again by its range and goes into a temporary table. From there one statement, inside the server,
inserts its rows in the file's order: by some at a time, and where a few together are refused, one by one, each in a
subtransaction. What is refused is noted with the error that Postgres itself raised. So the cost is linear in the rows,
however many are refused: a row that is costs about as much as one that is not.

All of that happens in the transaction of the segment, behind the fence and the claim of its ledger row.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import asyncpg
import msgspec
import numpy as np

from stream_api.datasets.catalogue import quote_identifier
from stream_api.datasets.plan import Plan
from stream_api.load.judge import Judge
from stream_api.load.model import Batch, Int64s
from stream_api.load.parser import Parser
from stream_api.load.pieces import pieces
from stream_api.load.reader import RunInThread
from stream_api.load.rejects import Rejection, Rejects
from stream_api.load.validator import Validator
from stream_api.load.violations import IS_ABOUT_A_ROW, REASON_CHARACTERS, code_of, reason_of

#: Rows that are tried together: one that is refused costs the others of them a subtransaction each.
_TOGETHER: Final = 32
#: How often rows are tried again that refer to rows of the same table: each time in the other order.
_ROUNDS: Final = 10

# `key_name` and `key`: of the only index that can refuse a row, where an INSERT into the table does nothing but insert,
# the index compares plain columns, and it is of the table itself (a partition's has another name).
_LOOK: Final = """
SELECT EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid AND ev_type = '3') AS has_rules,
       EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND conrelid = c.oid AND confrelid = c.oid)
           AS refers_to_itself,
       key.name AS key_name, key.columns AS key
  FROM pg_class AS c
  LEFT JOIN LATERAL (
       SELECT min(index.relname::text) AS name, min(i.plain) AS columns
         FROM (SELECT indexrelid,
                      CASE WHEN indisunique AND NOT indisexclusion AND indimmediate AND indexprs IS NULL
                                AND NOT indnullsnotdistinct
                           THEN (SELECT array_agg(ARRAY[attname::text, quote_ident(attname)] ORDER BY place)
                                   FROM unnest(indkey[0:indnkeyatts - 1]) WITH ORDINALITY AS k (attnum, place)
                                   JOIN pg_attribute AS a ON a.attrelid = indrelid AND a.attnum = k.attnum) END AS plain
                 FROM pg_index WHERE indrelid = c.oid AND (indisunique OR indisexclusion)) AS i
         JOIN pg_class AS index ON index.oid = i.indexrelid
       HAVING count(*) = 1) AS key
    ON c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgtype & 7 = 7)
 WHERE c.oid = to_regclass($1)
"""
_CREATE: Final = """
CREATE TEMPORARY TABLE stream_api_rows (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {columns}) ON COMMIT DROP;
CREATE TEMPORARY TABLE stream_api_refused
    (n bigint PRIMARY KEY, state text, message text, detail text, column_name text) ON COMMIT DROP;
SET CONSTRAINTS ALL IMMEDIATE
"""
# OVERRIDING SYSTEM VALUE: COPY takes a value for an identity column too. The names of variables begin with `_`; columns
# are written with their table wherever there is one.
_SIFT: Final = """
DECLARE
    _row record; _first bigint := 1; _last bigint; _some bigint; _taken bigint := 0; _on boolean;
    _state text; _message text; _detail text; _column text;
BEGIN
    SELECT coalesce(max(r.n), 0) INTO _last FROM pg_temp.stream_api_rows AS r;
    WHILE _first <= _last LOOP
        BEGIN
            INSERT INTO {target} ({columns}) OVERRIDING SYSTEM VALUE
            SELECT {of_rows} FROM pg_temp.stream_api_rows AS r
            WHERE r.n >= _first AND r.n < _first + {together} ORDER BY r.n {on_conflict};
            GET DIAGNOSTICS _some = ROW_COUNT;
            {after_some}
            _taken := _taken + _some;
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            GET STACKED DIAGNOSTICS _state = RETURNED_SQLSTATE;
            IF NOT {about_a_row} THEN RAISE; END IF;
            FOR _row IN SELECT * FROM pg_temp.stream_api_rows AS r
                        WHERE r.n >= _first AND r.n < _first + {together} ORDER BY r.n LOOP
                BEGIN
                    {insert_one}
                EXCEPTION WHEN OTHERS OR assert_failure THEN
                    {diagnose}
                    INSERT INTO pg_temp.stream_api_refused VALUES (_row.n, _state, _message, _detail, _column);
                END;
            END LOOP;
        END;
        _first := _first + {together};
    END LOOP;
    FOR _round IN 1 .. {rounds} LOOP
        _on := false;
        FOR _row IN SELECT r.* FROM pg_temp.stream_api_rows AS r JOIN pg_temp.stream_api_refused AS e USING (n)
                    WHERE e.state = '23503' ORDER BY CASE _round % 2 WHEN 0 THEN n ELSE -n END LOOP
            BEGIN
                {insert_again}
                DELETE FROM pg_temp.stream_api_refused AS e WHERE e.n = _row.n;
                _on := true;
            EXCEPTION WHEN OTHERS OR assert_failure THEN
                {diagnose}
                UPDATE pg_temp.stream_api_refused AS e
                SET state = _state, message = _message, detail = _detail, column_name = _column WHERE e.n = _row.n;
            END;
        END LOOP;
        EXIT WHEN NOT _on;
    END LOOP;
    PERFORM set_config('stream_api.taken', _taken::text, true);
END
"""
_INSERT_ONE: Final = """
                    INSERT INTO {target} ({columns}) OVERRIDING SYSTEM VALUE VALUES ({of_row}) {on_conflict};
                    GET DIAGNOSTICS _some = ROW_COUNT;
                    {after_one}
                    _taken := _taken + _some;
"""
# With one key, which is the usual thing, a duplicate is known without an error: that costs much less, and leaves no
# dead row in the table. The words are those of Postgres.
_AFTER_SOME: Final = """
            IF _some = 0 THEN
                INSERT INTO pg_temp.stream_api_refused
                SELECT r.n, '23505', {message}, format({detail}, {key_of_rows}) FROM pg_temp.stream_api_rows AS r
                WHERE r.n >= _first AND r.n < _first + {together};
            ELSIF _some < least({together}, _last - _first + 1) THEN
                RAISE unique_violation;
            END IF;
"""
_AFTER_ONE: Final = """
                    IF _some = 0 THEN
                        INSERT INTO pg_temp.stream_api_refused
                        VALUES (_row.n, '23505', {message}, format({detail}, {key_of_row}));
                    END IF;
"""
_DIAGNOSE: Final = """
                    GET STACKED DIAGNOSTICS _state = RETURNED_SQLSTATE, _message = MESSAGE_TEXT,
                        _detail = PG_EXCEPTION_DETAIL, _column = COLUMN_NAME;
                    IF NOT {about_a_row} THEN RAISE; END IF;
"""
_REFUSED: Final = """
SELECT n, state, left(message, $3) AS message, left(detail, $3) AS detail, column_name
FROM pg_temp.stream_api_refused WHERE n >= $1 AND n < $2 ORDER BY n
"""


class CannotSift(Exception):
    """The rows at fault cannot be told from the others here; the message says why and what would help."""


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


@dataclass(frozen=True, slots=True)
class _Part:
    """A batch that lies in the temporary table: from row `first` there, in the file's order."""

    batch: Batch
    first: int
    lines: Int64s
    offsets: Int64s
    rejects: Rejects


@dataclass(frozen=True, slots=True)
class _Table:
    """What matters of the target table.

    :param refers_to_itself: by a foreign key.
    :param key: columns of the only key that can refuse a row, each as it is and as Postgres quotes it in its messages;
        empty where it is not as simple.
    """

    refers_to_itself: bool
    key_name: str | None
    key: Mapping[str, str]


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
        # As text, all rows of a batch keep their order; those in binary form would come before the others.
        self._validator = Validator(msgspec.structs.replace(plan, copy_format="csv"), judge, run_in_thread)
        self._run_in_thread = run_in_thread
        self._sources = {column.name: column.source for column in plan.columns}

    @staticmethod
    def memory_bytes(*, segment: int, batch: int, record: int) -> int:
        """The most that one lane holds: the segment, and a batch as rows and as text, while it is sent; or rejections.

        Those weigh no more than the segment, since they are compressed, and once more while they are joined. The
        batches that they are made of go one by one.
        """
        return max(segment + record + 5 * batch, 2 * (segment + record))

    async def load(self, connection: asyncpg.Connection, start: int, end: int, line: int) -> Loaded:
        """Load a segment in the caller's transaction.

        :raises CannotSift: nothing has been changed but what the rollback takes back.
        :raises asyncpg.PostgresError: what is no row's fault.
        """
        table = await self._prepare(connection)
        batches = await self._read_again(start, end, line)
        parts: list[_Part] = []
        tag = await connection.copy_to_table(
            "stream_api_rows",
            schema_name="pg_temp",
            columns=[f"c{number}" for number in range(len(self._plan.columns))],
            source=self._rows(batches, parts),  # type: ignore[arg-type]  # memoryviews work as well as bytes
            format="csv",
            encoding="utf8",
            null="",
            delimiter=",",
            quote='"',
        )
        del batches
        sent = sum(part.lines.size for part in parts)
        if tag != f"COPY {sent}":
            msg = f"{sent} rows were sent to the temporary table and it says {tag}"
            raise ValueError(msg)
        await connection.execute(self._statement(table))
        inserted = int(await connection.fetchval("SELECT current_setting('stream_api.taken')"))
        refused = -sum(len(part.rejects) for part in parts)
        rejects = Rejects.join([await self._rejects(connection, parts.pop(0)) for _ in range(len(parts))])
        refused += len(rejects)
        return Loaded(
            rows_read=sent + len(rejects) - refused,
            rows_inserted=inserted,
            rows_skipped=sent - refused - inserted,
            rejects=rejects,
        )

    async def _prepare(self, connection: asyncpg.Connection) -> _Table:
        """Look at the table, and create the temporary ones."""
        found = await connection.fetchrow(_LOOK, self._plan.table)
        if found is None:
            msg = "The table is no longer there."
            raise CannotSift(msg)
        if found["has_rules"]:
            msg = "The table has rules on INSERT, which COPY passes over; so its rows cannot be tried one by one."
            raise CannotSift(msg)
        columns = ", ".join(f"c{number} {column.type}" for number, column in enumerate(self._plan.columns))
        try:
            await connection.execute(_CREATE.format(columns=columns))
        except asyncpg.InsufficientPrivilegeError as exc:
            role = connection.get_settings().session_authorization
            msg = (
                f"The role {role} may not create temporary tables ({exc.message}). GRANT TEMPORARY ON DATABASE … TO "
                f"{role}, and retry: then only the rows at fault are rejected, and the rest loads."
            )
            raise CannotSift(msg) from exc
        key = dict(found["key"] or ())
        if not key.keys() <= set(self._plan.column_names):
            key = {}
        return _Table(refers_to_itself=found["refers_to_itself"], key_name=found["key_name"], key=key)

    async def _rows(self, batches: Sequence[Batch], parts: list[_Part]) -> AsyncIterator[bytes | memoryview]:
        """The rows of the batches as text, while `parts` is filled."""
        first = 1
        for batch in batches:
            rows = await self._run_in_thread(self._parser.parse, batch)
            encoded = await self._validator.validate(rows)
            places = np.searchsorted(rows.lines, encoded.csv_lines)
            parts.append(_Part(batch, first, encoded.csv_lines, rows.offsets[places], encoded.rejections))
            first += encoded.csv_lines.size
            del rows
            async for piece in pieces(encoded.csv):
                yield piece

    def _statement(self, table: _Table) -> str:
        names = self._plan.column_names
        numbers = range(len(names))
        parts = {
            "target": self._plan.table,
            "columns": ", ".join(map(quote_identifier, names)),
            "of_rows": ", ".join(f"r.c{number}" for number in numbers),
            "of_row": ", ".join(f"_row.c{number}" for number in numbers),
            "about_a_row": IS_ABOUT_A_ROW.format(state="_state"),
            "together": str(_TOGETHER),
            "on_conflict": "",
            "after_some": "",
            "after_one": "",
        }
        insert_again = _INSERT_ONE.format(**parts)
        if table.key:
            places = [names.index(name) for name in table.key]
            columns = ", ".join(table.key.values()).replace("%", "%%")
            key = {
                "message": _literal(f'duplicate key value violates unique constraint "{table.key_name}"'),
                "detail": _literal(f"Key ({columns})=({', '.join(['%s'] * len(places))}) already exists."),
                "key_of_rows": ", ".join(f"r.c{place}" for place in places),
                "key_of_row": ", ".join(f"_row.c{place}" for place in places),
            }
            parts["on_conflict"] = "ON CONFLICT DO NOTHING"
            parts["after_some"] = _AFTER_SOME.format(**parts, **key)
            parts["after_one"] = _AFTER_ONE.format(**parts, **key)
        body = _SIFT.format(
            **parts,
            insert_one=_INSERT_ONE.format(**parts),
            insert_again=insert_again,
            diagnose=_DIAGNOSE.format(**parts),
            rounds=_ROUNDS if table.refers_to_itself else 0,
        )
        return f"DO {_literal(body)}"

    async def _rejects(self, connection: asyncpg.Connection, part: _Part) -> Rejects:
        """The rejections of a batch: those of before, and the rows that the table has refused."""
        refused = await connection.fetch(_REFUSED, part.first, part.first + part.lines.size, REASON_CHARACTERS)
        return await self._run_in_thread(self._merged, part, refused) if refused else part.rejects

    def _merged(self, part: _Part, refused: Sequence[Any]) -> Rejects:
        places = np.fromiter((row["n"] for row in refused), np.int64, len(refused)) - part.first
        offsets = part.offsets[places]

        def rejections() -> Iterator[Rejection]:
            found = zip(
                refused, part.lines[places].tolist(), offsets.tolist(), part.batch.records(offsets), strict=True
            )
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

        if not part.rejects:
            return Rejects.pack(rejections())
        return Rejects.pack(heapq.merge(part.rejects, rejections(), key=lambda each: each.offset))


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
