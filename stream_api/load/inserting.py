"""Rows from a table of ours into the target, in one statement inside the server, and what the target says of each.

All rows at once, where nothing is known against that; else some at a time, and where a few together are refused, one
by one, each in a subtransaction. What is refused is noted with the error that Postgres itself raised. So the cost is
linear in the rows, however many are refused: a row that is costs about as much as one that is not.

What becomes of a row whose key the table has does not depend on how many go together: it is as if all rows of the file
went in one by one, in its order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import asyncpg

from stream_api.datasets.catalogue import quote_identifier
from stream_api.datasets.plan import Plan
from stream_api.load.holding import REFUSED
from stream_api.load.target import Target
from stream_api.load.violations import IS_ABOUT_A_ROW

#: Rows that are tried together: one that is refused costs the others of them a subtransaction each.
_TOGETHER: Final = 32
#: Of so many rows those that went in are noted, at some 60 bytes each in the server, to tell the duplicates by them.
_NOTED: Final = 200_000
#: How often rows are tried again that refer to rows of the same table: each time in the other order.
ROUNDS: Final = 10
#: Past the last line of any file.
NO_LINE: Final = 2**62

# The names of variables begin with `_`; columns are written with their table wherever there is one. (There is none for
# those of ON CONFLICT, and a table may have such a name.)
_STATEMENT: Final = """
#variable_conflict use_column
DECLARE
    _row record; _first bigint := {first}; _next bigint := {next}; _count bigint := {rows}; _done boolean := false;
    _some bigint; _met bigint; _lines bigint[]; _inserted bigint := 0; _updated bigint := 0; _on boolean;
    _state text; _message text; _detail text; _column text;
BEGIN
    IF {whole} THEN
        BEGIN
            {insert_whole}
            _done := true;
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            GET STACKED DIAGNOSTICS _state = RETURNED_SQLSTATE;
            IF NOT {about_a_row} THEN RAISE; END IF;
        END;
    END IF;
    IF NOT _done AND NOT {again} THEN
        {index}
        FOR _first, _next, _count IN
            SELECT line, lead(line, 1, {next}::bigint) OVER (ORDER BY line), least({together}, total - n + 1)
            FROM (SELECT r.line, row_number() OVER (ORDER BY r.line) AS n, count(*) OVER () AS total
                  FROM {source} AS r WHERE r.line >= {first} AND r.line < {next}) AS numbered
            WHERE (n - 1) % {together} = 0 ORDER BY line
        LOOP
            BEGIN
                {insert_some}
            EXCEPTION WHEN OTHERS OR assert_failure THEN
                GET STACKED DIAGNOSTICS _state = RETURNED_SQLSTATE;
                IF NOT {about_a_row} THEN RAISE; END IF;
                FOR _row IN SELECT * FROM {source} AS r
                            WHERE r.line >= _first AND r.line < _next ORDER BY r.line LOOP
                    BEGIN
                        {insert_one}
                    EXCEPTION WHEN OTHERS OR assert_failure THEN
                        {diagnose}
                        INSERT INTO {refused} VALUES (_row.line, _state, _message, _detail, _column);
                    END;
                END LOOP;
            END;
        END LOOP;
    END IF;
    IF NOT _done THEN
        FOR _round IN 1 .. {rounds} LOOP
            _on := false;
            FOR _row IN SELECT r.* FROM {source} AS r JOIN {refused} AS e USING (line)
                        WHERE e.state = '23503' AND r.line >= {first} AND r.line < {next} {alone}
                        ORDER BY CASE _round % 2 WHEN 0 THEN line ELSE -line END LOOP
                BEGIN
                    {insert_again}
                    DELETE FROM {refused} AS e WHERE e.line = _row.line;
                    _on := true;
                EXCEPTION WHEN OTHERS OR assert_failure THEN
                    {diagnose}
                    UPDATE {refused} AS e
                    SET state = _state, message = _message, detail = _detail, column_name = _column
                    WHERE e.line = _row.line;
                END;
            END LOOP;
            EXIT WHEN NOT _on;
        END LOOP;
    END IF;
    PERFORM set_config('stream_api.inserted', _inserted::text, true),
            set_config('stream_api.updated', _updated::text, true);
END
"""
# OVERRIDING SYSTEM VALUE: COPY takes a value for an identity column too.
_INSERT_SOME: Final = """
            {before}
            INSERT INTO {target} ({columns}) OVERRIDING SYSTEM VALUE
            SELECT {distinct} {of_rows} FROM {source} AS r
            WHERE r.line >= _first AND r.line < _next ORDER BY {order} {on_conflict};
            GET DIAGNOSTICS _some = ROW_COUNT;
            {after_some}
"""
_INSERT_ONE: Final = """
            {before}
            INSERT INTO {target} ({columns}) OVERRIDING SYSTEM VALUE VALUES ({of_row}) {on_conflict};
            GET DIAGNOSTICS _some = ROW_COUNT;
            {after_one}
"""
_COUNT_INSERTED: Final = "_inserted := _inserted + _some;"
# With one key, which is the usual thing, a duplicate is known without an error: that costs much less, and leaves no
# dead row in the table. The words are those of Postgres.
_KNOWN_SOME: Final = """
            IF _some = 0 THEN
                INSERT INTO {refused}
                SELECT r.line, '23505', {message}, format({detail}, {key_of_rows}) FROM {source} AS r
                WHERE r.line >= _first AND r.line < _next;
            ELSIF _some < _count THEN
                RAISE unique_violation;
            END IF;
"""
# Of all rows at once, too: a row that has gone in tells its line, which was noted just before, and the others are the
# duplicates. What notes it is volatile, and so computed after the sorting, row by row; were it not, the count would
# show it.
_KNOWN_WHOLE: Final = """
            WITH went AS (
                INSERT INTO {target} ({columns}) OVERRIDING SYSTEM VALUE
                SELECT CASE WHEN set_config('stream_api.line', r.line::text, true) <> '' THEN r.c0 END {of_other_rows}
                FROM {source} AS r WHERE r.line >= _first AND r.line < _next ORDER BY r.line ON CONFLICT DO NOTHING
                RETURNING current_setting('stream_api.line')::bigint AS line)
            SELECT count(*), array_agg(line) INTO _some, _lines FROM went;
            INSERT INTO {refused}
            SELECT r.line, '23505', {message}, format({detail}, {key_of_rows}) FROM {source} AS r
            WHERE r.line >= _first AND r.line < _next AND NOT EXISTS (SELECT FROM unnest(_lines) AS w WHERE w = r.line);
            GET DIAGNOSTICS _met = ROW_COUNT;
            IF _some + _met <> _count THEN
                RAISE unique_violation;
            END IF;
"""
_KNOWN_ONE: Final = """
            IF _some = 0 THEN
                INSERT INTO {refused} VALUES (_row.line, '23505', {message}, format({detail}, {key_of_row}));
            END IF;
"""
# Rows that the table has are counted where they are met, which is exact on every kind of table: the condition is
# computed once for each, when it is locked. (What tells them afterwards, RETURNING xmax, partitioned tables refuse.)
_COUNT_NO_MET: Final = "PERFORM set_config('stream_api.met', '0', true);"
_COUNT_MET: Final = (
    "WHERE set_config('stream_api.met', (current_setting('stream_api.met')::bigint + 1)::text, true) <> ''"
)
# A row that a trigger drops is neither.
_COUNT_UPDATED: Final = """
            _met := current_setting('stream_api.met');
            _inserted := _inserted + greatest(_some - _met, 0);
            _updated := _updated + {updated};
"""
_DIAGNOSE: Final = """
            GET STACKED DIAGNOSTICS _state = RETURNED_SQLSTATE, _message = MESSAGE_TEXT,
                _detail = PG_EXCEPTION_DETAIL, _column = COLUMN_NAME;
            IF NOT {about_a_row} THEN RAISE; END IF;
"""
_RESULT: Final = f"""
SELECT current_setting('stream_api.inserted')::bigint AS inserted, current_setting('stream_api.updated')::bigint
       AS updated, (SELECT count(*) FROM {REFUSED} WHERE line >= $1 AND line < $2) AS refused
"""  # noqa: S608 (a constant of this package)


@dataclass(frozen=True, slots=True)
class Source:
    """Rows of a table of ours: those of lines from `first` up to `next`.

    :param table: for SQL.
    :param rows: how many there are.
    :param index: what makes an index on its lines, where it has none.
    """

    table: str
    rows: int
    first: int = 0
    next: int = NO_LINE
    index: str = ""


@dataclass(frozen=True, slots=True)
class Inserted:
    """What became of the rows; the rest was dropped by a trigger, or skipped. `refused` ones are in `REFUSED`."""

    inserted: int
    updated: int
    refused: int

    def and_then(self, again: Inserted) -> Inserted:
        """With what became of those that were refused, when they were tried again."""
        return Inserted(self.inserted + again.inserted, self.updated + again.updated, again.refused)


async def insert_rows(
    connection: asyncpg.Connection, plan: Plan, target: Target, source: Source, *, whole: bool
) -> Inserted:
    """Put rows into the target, as the plan's `conflict` wants it, within the caller's transaction.

    The table of what is refused is the caller's to empty.

    :param whole: try all rows at once first: nothing is known against them, but that some may be duplicates.
    :raises asyncpg.PostgresError: what is no row's fault.
    """
    return await _inserted(connection, source, _statement(plan, target, source, whole=whole))


async def insert_again(connection: asyncpg.Connection, plan: Plan, target: Target, source: Source) -> Inserted:
    """Try rows again that were refused for what they refer to, now that rows of other places have gone in.

    :returns: of those alone; and what is still refused of the source.
    :raises asyncpg.PostgresError: what is no row's fault.
    """
    return await _inserted(connection, source, _statement(plan, target, source, whole=False, again=True))


async def _inserted(connection: asyncpg.Connection, source: Source, statement: str) -> Inserted:
    await connection.execute(statement)
    row = await connection.fetchrow(_RESULT, source.first, source.next)
    assert row is not None  # noqa: S101 (three values are always one row)
    return Inserted(row["inserted"], row["updated"], row["refused"])


def _statement(plan: Plan, target: Target, source: Source, *, whole: bool, again: bool = False) -> str:
    names = plan.column_names
    places = [names.index(name) for name in plan.key]
    parts = {
        "source": source.table,
        "refused": REFUSED,
        "target": plan.table,
        "columns": ", ".join(map(quote_identifier, names)),
        "of_rows": ", ".join(f"r.c{number}" for number in range(len(names))),
        "of_row": ", ".join(f"_row.c{number}" for number in range(len(names))),
        "about_a_row": IS_ABOUT_A_ROW.format(state="_state"),
        "before": "",
        "distinct": "",
        "order": "r.line",
        "on_conflict": "",
        "alone": "",
        "after_some": _COUNT_INSERTED,
        "after_one": _COUNT_INSERTED,
    }
    # Whether a trigger drops a row, nobody can tell of several.
    by_one = plan.conflict == "update" and target.before_row
    plainly = parts
    if plan.conflict == "error":
        parts = plainly | _known_duplicates(plan, target, plainly, source.rows)
    else:
        parts |= _conflicts(plan, target, source, places, anywhere=again)
        plainly = parts
    insert_some = _INSERT_SOME.format(**parts)
    statement = _STATEMENT.format(
        **{"insert_whole": insert_some} | parts,
        first=source.first,
        next=source.next,
        rows=source.rows,
        whole=str(whole and not by_one).lower(),
        again=str(again).lower(),
        together=1 if by_one else _TOGETHER,
        index=source.index,
        rounds=ROUNDS if target.refers_to_itself else 0,
        insert_some=insert_some,
        insert_one=_INSERT_ONE.format(**parts),
        insert_again=_INSERT_ONE.format(**plainly),
        diagnose=_DIAGNOSE.format(**parts),
    )
    return f"DO {_literal(statement)}"


def _known_duplicates(plan: Plan, target: Target, parts: dict[str, str], rows: int) -> dict[str, str]:
    """What of the statement is different where one key is all that can refuse a row."""
    if not target.key:
        return {}
    places = [plan.column_names.index(name) for name in target.key]
    columns = ", ".join(target.key.values()).replace("%", "%%")
    words = parts | {
        "message": _literal(f'duplicate key value violates unique constraint "{target.key_name}"'),
        "detail": _literal(f"Key ({columns})=({', '.join(['%s'] * len(places))}) already exists."),
        "key_of_rows": ", ".join(f"r.c{place}" for place in places),
        "key_of_row": ", ".join(f"_row.c{place}" for place in places),
    }
    known = {
        "on_conflict": "ON CONFLICT DO NOTHING",
        "after_some": _KNOWN_SOME.format(**words) + _COUNT_INSERTED,
        "after_one": _KNOWN_ONE.format(**words) + _COUNT_INSERTED,
    }
    if rows <= _NOTED:
        words["of_other_rows"] = "".join(f", r.c{number}" for number in range(1, len(plan.column_names)))
        known["insert_whole"] = _KNOWN_WHOLE.format(**words) + _COUNT_INSERTED
    return known


def _conflicts(plan: Plan, target: Target, source: Source, places: list[int], *, anywhere: bool) -> dict[str, str]:
    """What of the statement is different where rows may have the key of another.

    :param anywhere: rows of all places have been in already.
    """
    key = ", ".join(map(quote_identifier, plan.key))
    # Tried again is only what no other row of these has the key of: its place in the order is lost.
    same = " AND ".join(f"o.c{place} = r.c{place}" for place in places)
    within = "o.line <> r.line" + ("" if anywhere else f" AND o.line >= {source.first} AND o.line < {source.next}")
    changed = {"alone": f"AND NOT EXISTS (SELECT FROM {source.table} AS o WHERE {within} AND {same})"}
    if plan.conflict == "skip":
        return changed | {"on_conflict": f"ON CONFLICT ({key}) DO NOTHING"}
    settable = [name for name in plan.column_names if name not in plan.key and name not in target.unsettable]
    # With nothing to set it is the key itself, so that triggers see the row as they see others.
    sets = ", ".join(
        f"{quote_identifier(name)} = EXCLUDED.{quote_identifier(name)}" for name in settable or plan.key[:1]
    )
    changed |= {
        "before": _COUNT_NO_MET,
        "on_conflict": f"ON CONFLICT ({key}) DO UPDATE SET {sets} {_COUNT_MET}",
        "after_some": _COUNT_UPDATED.format(updated="least(_some, _met)"),
        "after_one": _COUNT_UPDATED.format(updated="least(_some, _met)"),
    }
    if target.only_keys:
        # Postgres updates no row twice in one statement; and where nobody can tell, the last of a key is enough. In the
        # order of the keys loads that update the same rows wait for each other, and not for one another. A key with
        # NULL is nobody else's.
        null = " OR ".join(f"r.c{place} IS NULL" for place in places)
        keys = [*(f"r.c{place}" for place in places), f"CASE WHEN {null} THEN r.line END"]
        changed |= {
            "distinct": f"DISTINCT ON ({', '.join(keys)})",
            "order": f"{', '.join(keys)}, r.line DESC",
            "after_some": _COUNT_UPDATED.format(updated="_count - greatest(_some - _met, 0)"),
        }
    return changed


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
