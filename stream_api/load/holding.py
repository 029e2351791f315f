"""Where rows lie before they go into the target table from inside the server: temporary tables of a lane's own.

The columns of the plan have numbers there, for a table's names may be anything, and one more column is the line of the
file: what a row is known by, and its place in the file's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import asyncpg
import msgspec

from stream_api.datasets.plan import Plan, PlanColumn
from stream_api.load.copying import Into
from stream_api.load.target import CannotSift

_LINE: Final = PlanColumn(name="line", source="", kind="int8", type="bigint", computed="line")

#: The table of the rows, for SQL.
ROWS: Final = "pg_temp.stream_api_rows"
#: What the target has refused of them: line, state, message, detail and column_name.
REFUSED: Final = "pg_temp.stream_api_refused"

# Emptied by each commit, and made once for a lane: to make them anew for each segment would bloat the catalogue.
_CREATE: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS stream_api_rows ({columns}) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS stream_api_refused
    (line bigint PRIMARY KEY, state text, message text, detail text, column_name text) ON COMMIT DELETE ROWS
"""


def held(plan: Plan) -> Plan:
    """The plan for rows that go into a table of ours: with their lines."""
    return msgspec.structs.replace(plan, columns=(*plan.columns, _LINE))


def column_names(plan: Plan) -> tuple[str, ...]:
    """The columns of a table of ours for the rows of this plan."""
    return (*(f"c{number}" for number in range(len(plan.columns))), _LINE.name)


def column_definitions(plan: Plan, collations: Mapping[str, str]) -> str:
    """The same for CREATE TABLE.

    :param collations: see `Target`.
    """
    columns = [
        f"c{number} {column.type}" + (f" COLLATE {collations[column.name]}" if column.name in collations else "")
        for number, column in enumerate(plan.columns)
    ]
    return ", ".join([*columns, f"{_LINE.name} bigint NOT NULL"])


def rows_of(plan: Plan) -> Into:
    """The table of the rows, for COPY."""
    return Into("pg_temp", "stream_api_rows", column_names(plan))


async def create_holding(connection: asyncpg.Connection, plan: Plan, collations: Mapping[str, str]) -> None:
    """Create the tables, where the session has none; outside of the transaction of a segment.

    :raises CannotSift: the role may not.
    """
    try:
        await connection.execute(_CREATE.format(columns=column_definitions(plan, collations)))
    except asyncpg.InsufficientPrivilegeError as exc:
        role = connection.get_settings().session_authorization
        msg = (
            f"The role {role} may not create temporary tables ({exc.message}). GRANT TEMPORARY ON DATABASE … TO "
            f"{role}, and retry: then only the rows at fault are rejected, and the rest loads."
        )
        raise CannotSift(msg) from exc
