"""Values as SQL writes them: for statements that share a round trip, which cannot have parameters."""

from __future__ import annotations

from typing import Final, NewType
from uuid import UUID

#: An expression that stands as it is.
Sql = NewType("Sql", str)

TRUE: Final = Sql("true")


def literal(value: int | str | bytes | UUID | None) -> Sql:
    """A value, written so that no setting of the session can change what it means.

    :raises ValueError: a text with NUL, at which PostgreSQL would take the statement for ended.
    """
    match value:
        case None:
            return Sql("NULL")
        case int():
            return Sql(f"{value:d}")
        case UUID():
            return Sql(f"'{value}'")
        case bytes():
            return Sql(f"decode('{value.hex()}', 'hex')")
    if "\0" in value:
        msg = "PostgreSQL knows no text with NUL"
        raise ValueError(msg)
    # Within E'' neither `standard_conforming_strings` nor `backslash_quote` has a say.
    doubled = value.replace("\\", "\\\\").replace("'", "''")
    return Sql(f"E'{doubled}'")


def call(function: str, *arguments: Sql) -> Sql:
    """A call of a function."""
    return Sql(f"{function}({', '.join(arguments)})")
