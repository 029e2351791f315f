"""Postgres as the judge of values: what an input function says about them, without storing anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import asyncpg

from stream_api.errors import Failure
from stream_api.ledger.pool import Connection, Pool, using
from stream_api.load.rules.bounds import Range

#: What one query asks at most: so many values, and so many characters unless it is a single value. With the answers
#: (below) that bounds what a query holds, here and there.
_QUERY_VALUES: Final = 1000
_QUERY_CHARACTERS: Final = 256 * 1024
#: Postgres quotes the value in its message, and the value may be a megabyte.
_REASON_CHARACTERS: Final = 300
#: So many answers are remembered, about values up to so many characters: what is wrong with a file is mostly the same
#: few words over and over (`N/A`, `-`, `unknown`).
_REMEMBERED: Final = 512
_REMEMBERED_CHARACTERS: Final = 64
#: What they weigh at most: value and message at four bytes a character, and the objects.
REMEMBERED_BYTES: Final = _REMEMBERED * (4 * (_REMEMBERED_CHARACTERS + _REASON_CHARACTERS) + 600)

_ASK: Final = """
SELECT q.number, left(e.message, $3) AS message, left(e.detail, $3) AS detail, e.sql_error_code AS sqlstate
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS q(value, type, number)
 CROSS JOIN LATERAL pg_input_error_info(q.value, q.type) AS e
 WHERE e.message IS NOT NULL
"""

_OUTSIDE: Final = """
SELECT q.number FROM unnest($1::text[]) WITH ORDINALITY AS q(value, number)
 WHERE q.value::{type}::{base} < $2::text::{base} OR q.value::{type}::{base} > $3::text::{base}
"""

#: Classes of SQLSTATE by which a type or a domain speaks about a value even where it throws: data exceptions,
#: cardinality, constraints, limits of the program (nesting too deep), features, functions, PL/pgSQL; XX000, the plain
#: elog(ERROR) of an input function in C; and 42601 and 42602, a value that should be a name and is none (regclass), for
#: our statement itself has no such errors. Others are about the statement or the server.
_VALUE_CLASSES: Final = frozenset({"0A", "21", "22", "23", "2F", "38", "39", "54", "P0"})
_VALUE_STATES: Final = frozenset({"XX000", "42601", "42602"})
_UNDEFINED_OBJECT: Final = "42704"


class Question(NamedTuple):
    """Whether this type takes this value.

    :param type: for SQL, with its modifier, from the catalogue: it is trusted.
    :param value: the text, or `None` for NULL (a domain may refuse it).
    """

    type: str
    value: str | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why Postgres does not take a value.

    :param message: in its own words, cut at some hundred characters.
    """

    message: str
    sqlstate: str


class Judge:
    """Asks Postgres about the values of one load, and remembers what it was told about short ones.

    Memory: `REMEMBERED_BYTES`, and what a query holds (see there).

    :param pool: of connections with the session settings of those that load. A question never waits for a COPY, so the
        pool must not be that of the lanes.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: dict[Question, Refusal | None] = {}

    async def outside(self, wanted: Range, values: Iterable[str]) -> set[str]:
        """Those of the values that lie outside of a range, as their type compares.

        :param values: that the type takes.
        :raises Failure: as `ask`.
        """
        questions = [Question(wanted.type, value) for value in dict.fromkeys(values)]
        found: set[str] = set()
        if not questions:
            return found
        statement = _OUTSIDE.format(type=wanted.type, base=wanted.base)
        async with using(self._pool) as connection:
            for chunk in _chunks(questions):
                asked = [question.value for question in chunk]
                rows = await connection.fetch(statement, asked, wanted.least, wanted.greatest)
                found.update(asked[row["number"] - 1] or "" for row in rows)
        return found

    async def ask(self, questions: Iterable[Question]) -> dict[Question, Refusal]:
        """Ask about values; the same value is asked about once. Those that are not in the answer are taken.

        :raises Failure: `database_unavailable`, `database_refused`, `plan_changed` (a type is gone).
        """
        asked = dict.fromkeys(questions)
        refusals = {question: known for question in asked if (known := self._known.get(question)) is not None}
        new = [question for question in asked if question not in self._known]
        if new:
            answers = await self._ask(new)
            self._remember(new, answers)
            refusals |= answers
        return refusals

    def _remember(self, questions: Iterable[Question], answers: Mapping[Question, Refusal]) -> None:
        for question in questions:
            if len(question.value or "") <= _REMEMBERED_CHARACTERS:
                if len(self._known) == _REMEMBERED:
                    self._known.clear()
                self._known[question] = answers.get(question)

    async def _ask(self, questions: Sequence[Question]) -> dict[Question, Refusal]:
        values = [question for question in questions if question.value is not None]
        nulls = [question for question in questions if question.value is None]
        refusals: dict[Question, Refusal] = {}
        async with using(self._pool) as connection:
            for chunk in _chunks(values):
                refusals |= await _ask(connection, chunk)
            for question in nulls:
                if (refusal := await _ask_null(connection, question.type)) is not None:
                    refusals[question] = refusal
        return refusals


def _chunks(questions: Sequence[Question]) -> Iterator[list[Question]]:
    chunk: list[Question] = []
    characters = 0
    for question in questions:
        length = len(question.value or "")
        if chunk and (len(chunk) == _QUERY_VALUES or characters + length > _QUERY_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(question)
        characters += length
    if chunk:
        yield chunk


async def _ask(connection: Connection, questions: list[Question]) -> dict[Question, Refusal]:
    """Ask in one query; where a value makes the query itself fail, halve until that value stands alone."""
    try:
        rows = await connection.fetch(
            _ASK, [q.value for q in questions], [q.type for q in questions], _REASON_CHARACTERS
        )
    except asyncpg.PostgresError as exc:
        refusal = _refusal(exc)
        if len(questions) == 1:
            return {questions[0]: refusal}
        middle = len(questions) // 2
        return await _ask(connection, questions[:middle]) | await _ask(connection, questions[middle:])
    return {
        questions[row["number"] - 1]: Refusal(_sentence(row["message"], row["detail"]), row["sqlstate"]) for row in rows
    }


async def _ask_null(connection: Connection, type_name: str) -> Refusal | None:
    """Whether a domain takes NULL: input functions are never called with it, but COPY checks the domain."""
    try:
        await connection.fetchval(f"SELECT CAST(NULL AS {type_name}) IS NULL")
    except asyncpg.PostgresError as exc:
        return _refusal(exc)
    return None


def _refusal(exc: asyncpg.PostgresError) -> Refusal:
    """What an error that was thrown says about the value.

    :raises Failure: `plan_changed`. :raises asyncpg.PostgresError: the error, where it is not about a value.
    """
    sqlstate = exc.sqlstate or ""
    if sqlstate == _UNDEFINED_OBJECT:
        msg = f"A type of the table is no longer there: {exc}"
        raise Failure("plan_changed", msg) from exc
    if sqlstate[:2] in _VALUE_CLASSES or sqlstate in _VALUE_STATES:
        return Refusal(_sentence(str(exc.args[0]) if exc.args else "", exc.detail), sqlstate)
    raise exc


def _sentence(message: str, detail: str | None) -> str:
    text = f"{message}: {detail}" if detail else message
    return text[:_REASON_CHARACTERS]
