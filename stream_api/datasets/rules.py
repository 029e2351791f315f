"""Rules for columns: as a dataset's file writes them, and as a plan carries them."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Case = Literal["upper", "lower"]
#: One name or several.
Names = str | tuple[str, ...]
#: A value where a type does not matter: TOML's numbers and booleans stand for their text.
Scalar = bool | int | float | str

#: What a constant may be beside a text, each with what it stands for.
UPLOAD_ID: Final = "$uploadId"
LINE: Final = "$line"
SEGMENT: Final = "$segment"
PLACES: Final = (UPLOAD_ID, LINE, SEGMENT)


class ColumnRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a dataset says about one column of its table.

    A field is cleaned and checked in this order: `trim`, `null`, `default`, `case`, `formats` or `decimal`; then comes
    the column's type, then `required`, `values`, `min`, `max` and `pattern`.

    :param source: its names in files, beside its own.
    :param required: a row without a value is rejected, and so is a file without the column.
    :param default: the value where the field is empty, as a file would write it; also where the file lacks the column.
    :param constant: the value of every row: one of `PLACES` or a text (`$$` for a `$` at its beginning). No field of
        the file is the column's then.
    :param trim: white space at both ends is taken off; what is then empty is NULL. `None` as the dataset says.
    :param case: letters are written so.
    :param null: fields that mean NULL, compared as a whole. `None` as the dataset says.
    :param formats: of dates and times, tried in order; see `datasets.formats`.
    :param day_first: in 3/4/2026 the day comes first; instead of `formats`.
    :param decimal: what stands before the fraction of a number. :param thousands: what stands between groups of three.
    :param values: those that are allowed, compared as text.
    :param min: the least value, and `max` the greatest, compared as the column's type compares.
    :param pattern: of RE2, for the whole value.
    """

    source: Names = ()
    required: bool = False
    default: Scalar | None = None
    constant: Scalar | None = None
    trim: bool | None = None
    case: Case | None = None
    null: Names | None = None
    formats: Names = ()
    day_first: bool = False
    decimal: str = "."
    thousands: str = ""
    values: tuple[Scalar, ...] | None = None
    min: Scalar | None = None
    max: Scalar | None = None
    pattern: str | None = None


class Rules(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """What is done to the fields of one column, and asked of them; as `ColumnRules`, settled for the column's type.

    :param base: the built-in type under the column's, where formats or bounds need it.
    :param formats: those of `day_first` as well.
    :param values: `None` for any.
    :param min: and `max`: numbers as text, dates and times in ISO 8601.
    """

    base: str | None = None
    required: bool = False
    default: str | None = None
    trim: bool = False
    case: Case | None = None
    null: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    decimal: str = "."
    thousands: str = ""
    values: tuple[str, ...] | None = None
    min: str | None = None
    max: str | None = None
    pattern: str | None = None


#: Rules that change and ask nothing.
NO_RULES: Final = Rules()


def names(value: Names | None) -> tuple[str, ...]:
    """One name or several as several."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def as_text(value: Scalar) -> str:
    """A value of TOML as a file would write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
