"""What the target table says to a load that is neither about a row nor passes by itself: for a person to mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from stream_api.errors import Failure
from stream_api.ledger.pool import Connection

_UNDEFINED_TABLE: Final = "42P01"
_INVALID_SCHEMA: Final = "3F000"
#: An undefined column; a column of another type.
_CHANGED: Final = frozenset({"42703", "42804"})
_NO_PRIVILEGE: Final = "42501"
#: Other refusals: a view or the like (42809), row-level security (0A000), a state in which it takes nothing (55000),
#: and what else of class 42 triggers, defaults and policies can come to.
_NOT_SO: Final = frozenset({"0A000", "55000"})


@contextmanager
def refusals(table: str, connection: Connection) -> Iterator[None]:
    """Turn what the target table answers inside into failures of the load.

    What a trigger or a default of the table comes to looks the same, so the server's own words are always in them.

    :param table: for SQL.
    :raises Failure: `table_missing`, `plan_changed`, `table_denied`; none of them passes by itself.
    """
    try:
        yield
    except asyncpg.PostgresError as exc:
        failure = _failure(exc, table, role=connection.get_settings().session_authorization)
        if failure is None:
            raise
        raise failure from exc


def _failure(exc: asyncpg.PostgresError, table: str, *, role: str) -> Failure | None:
    state = exc.sqlstate or ""
    said = f"{exc.message} (SQLSTATE {state})"
    if isinstance(exc, asyncpg.InvalidCachedStatementError):
        return None
    if state in {_UNDEFINED_TABLE, _INVALID_SCHEMA}:
        detail = f"Rows cannot be put into {table}: {said}. Create what is missing, then retry."
        return Failure("table_missing", detail, table=table, sqlstate=state)
    if state in _CHANGED:
        detail = f"{table} has changed since this load began: {said}. Change it back, then retry."
        return Failure("plan_changed", detail, table=table, sqlstate=state)
    if state == _NO_PRIVILEGE:
        detail = f"The role {role} may not put rows into {table}: {said}. GRANT INSERT ON {table} TO {role}, or what "
        return Failure("table_denied", f"{detail}else it lacks, then retry.", table=table, role=role, sqlstate=state)
    if state in _NOT_SO or state.startswith("42"):
        detail = f"{table} takes no rows from the role {role}: {said}. Mend that, then retry."
        return Failure("table_denied", detail, table=table, role=role, sqlstate=state)
    return None
