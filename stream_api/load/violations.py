"""Which errors of Postgres speak of a row, and the codes of the rejections that they come to."""

from __future__ import annotations

from typing import Final

#: Classes of SQLSTATE that speak of a row: cardinality, data, integrity, functions (2F, 38, 39), WITH CHECK OPTION,
#: limits (an index row too large), and what triggers raise; 45 is what other databases' triggers raise
#: (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_CLASSES: Final = ("21", "22", "23", "2F", "38", "39", "44", "45", "54", "P0")
#: The classes that the standard leaves to whoever implements it begin with these; Postgres uses those named second, and
#: so all others are of a trigger's own making.
_FREE: Final = "56789IJKLMNOPQRSTUVWXYZ"
_TAKEN: Final = ("53", "54", "55", "57", "58", "72", "P0", "XX")

#: The same test in SQL; `{state}` is where the SQLSTATE stands.
IS_ABOUT_A_ROW: Final = (
    f"(left({{state}}, 2) = ANY ('{{{{{','.join(_CLASSES)}}}}}')"
    f" OR left({{state}}, 1) = ANY ('{{{{{','.join(_FREE)}}}}}')"
    f" AND left({{state}}, 2) <> ALL ('{{{{{','.join(_TAKEN)}}}}}'))"
)

_CODES: Final = {
    "23502": "missing_value",
    "23503": "foreign_key_violated",
    "23001": "foreign_key_violated",
    "23505": "duplicate_key",
    "23514": "check_violated",
    "44000": "check_violated",
    "23P01": "exclusion_violated",
    "22001": "too_long",
    "22003": "number_out_of_range",
    "22008": "date_out_of_range",
}
_CODES_OF_CLASSES: Final = {"22": "invalid_value", "54": "too_long"}
#: Their detail is the row once more.
_DETAIL_IS_THE_ROW: Final = frozenset({"23502", "23514", "44000"})
#: As much of a reason is kept: Postgres quotes values, and a value may be a megabyte.
REASON_CHARACTERS: Final = 300


def is_about_a_row(sqlstate: str | None) -> bool:
    """Whether an error with this SQLSTATE is a row's fault."""
    if not sqlstate:
        return False
    return sqlstate[:2] in _CLASSES or (sqlstate[0] in _FREE and sqlstate[:2] not in _TAKEN)


def code_of(sqlstate: str) -> str:
    """The code of a rejection; what is no constraint's and no value's error was raised by a trigger."""
    return _CODES.get(sqlstate) or _CODES_OF_CLASSES.get(sqlstate[:2], "trigger_raised")


def reason_of(sqlstate: str, message: str, detail: str | None) -> str:
    """Postgres' own words, cut at some hundred characters."""
    text = message if not detail or sqlstate in _DETAIL_IS_THE_ROW else f"{message}: {detail}"
    return text[:REASON_CHARACTERS]
