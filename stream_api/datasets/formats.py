"""Formats of dates and times, as a dataset names them: a part of strptime's language, the Unix epoch, and ISO 8601."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

#: Seconds or milliseconds since 1970, with sign and fraction, and how many microseconds each is.
EPOCHS: Final = {"epoch_s": 1_000_000, "epoch_ms": 1_000}
#: What begins as ISO 8601 writes it, year, month, day (or hour and minute): the column's type reads it as it is.
ISO: Final = "iso"

#: What a directive stands for, as a pattern of RE2, and the name of what it says.
_DIRECTIVES: Final = {
    "Y": ("[0-9]{4}", "year"),
    "y": ("[0-9]{2}", "short_year"),
    "m": ("[0-9]{1,2}", "month"),
    "b": ("(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)", "month_name"),
    "B": (
        "(?i:january|february|march|april|may|june|july|august|september|october|november|december)",
        "month_name",
    ),
    "d": ("[0-9]{1,2}", "day"),
    "H": ("[0-9]{1,2}", "hour"),
    "I": ("[0-9]{1,2}", "hour12"),
    "p": ("(?i:am|pm)", "half"),
    "M": ("[0-9]{1,2}", "minute"),
    "S": ("[0-9]{1,2}", "second"),
    "f": ("[0-9]{1,6}", "fraction"),
    "z": ("(?:[+-][0-9]{2}:?[0-9]{2}|[Zz])", "zone"),
}
#: Each says the same as the others of its line.
_ONE_OF: Final = (("year", "short_year"), ("month", "month_name"), ("hour", "hour12"))

_DATE: Final = "year, month and day"
_DAY_FIRST: Final = ("%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y")
_DAY_FIRST_TIMES: Final = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f")


@dataclass(frozen=True, slots=True)
class Format:
    """A format in strptime's language.

    :param pattern: of RE2, with a group for each directive, named by what it says.
    :param says: the names of its groups.
    """

    pattern: str
    says: frozenset[str]


def parse_format(text: str) -> Format:
    """Read a format such as `%d.%m.%Y %H:%M`. What is no directive stands for itself.

    Numbers may lack a leading zero, names are English, and of two digits of a year 69 to 99 are of the last century.

    :raises ValueError: what is wrong with it, as a sentence without its beginning.
    """
    pattern, says = "", set[str]()
    for literal, directive in re.findall(r"([^%]+)|%(.?)", text, re.DOTALL):
        if literal or directive == "%":
            pattern += re.escape(literal or "%")
            continue
        if directive not in _DIRECTIVES:
            known = " ".join(f"%{each}" for each in _DIRECTIVES)
            msg = f"%{directive} is not known here; these are: {known} %%"
            raise ValueError(msg)
        what, name = _DIRECTIVES[directive]
        if name in says:
            msg = f"it has %{directive}, or one that says the same, twice"
            raise ValueError(msg)
        says.add(name)
        pattern += f"(?P<{name}>{what})"
    for same in _ONE_OF:
        if says.issuperset(same):
            msg = f"it says the {same[0]} twice"
            raise ValueError(msg)
    if ("hour12" in says) != ("half" in says):
        msg = "%I and %p belong together"
        raise ValueError(msg)
    if not says:
        msg = f"it has no directive such as %Y; or is it to be {', '.join([*EPOCHS, ISO])}?"
        raise ValueError(msg)
    return Format(pattern, frozenset(says))


def unfit(text: str, base: str) -> str | None:
    """Why a format cannot give values of a type, if it cannot.

    :param text: a format that `parse_format` takes, one of `EPOCHS`, or `ISO`.
    :param base: `date`, `time`, `timestamp` or `timestamptz`.
    """
    if text == ISO:
        return None
    if text in EPOCHS:
        return f"{text} has no meaning for a {base}" if base == "time" else None
    says = parse_format(text).says
    if base == "time":
        if not says & {"hour", "hour12"}:
            return "it says no hour"
        return "a time has no zone" if "zone" in says else None
    lacking = [group for group in (("year", "short_year"), ("month", "month_name"), ("day",)) if not says & {*group}]
    return f"it says no {lacking[0][0]}, and a date has {_DATE}" if lacking else None


def day_first_formats(base: str) -> tuple[str, ...]:
    """What `day_first` means for a type: 3/4/2026, 3.4.2026 and 3-4-2026 are in April; ISO 8601 stays what it is."""
    times = ("",) if base == "date" else _DAY_FIRST_TIMES
    return (*(date + time for date in _DAY_FIRST for time in times), ISO)
