"""What is wrong with a dataset's rules in themselves, before any table is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from stream_api.datasets.dataset import Dataset
from stream_api.datasets.formats import EPOCHS, ISO, parse_format
from stream_api.datasets.places import Path
from stream_api.datasets.rules import PLACES, ColumnRules, as_text, names
from stream_api.datasets.settling import bound

#: Where it stands within the dataset, and what it is, as a sentence without its beginning.
Problem = tuple[Path, str]

#: Of a format that a message shows.
_SHOWN_CHARACTERS: Final = 80
_NOTHING_SAID: Final = ColumnRules()
_EPOCH: Final = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?")
_ISO: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*|[0-9]{1,2}:[0-9]{2}.*")


def check_dataset(dataset: Dataset) -> Iterator[Problem]:
    """The problems of a dataset whose keys have values of the right types."""
    seen: dict[str, int] = {}
    ignored = {each.strip().casefold() for each in names(dataset.ignore)}
    for number, name in enumerate(dataset.fields):
        folded = name.strip().casefold()
        if folded in seen and folded not in ignored:
            yield ("fields", number), f"{name!r} is there twice"
        seen[folded] = number
    for number, name in enumerate(dataset.key):
        if name in dataset.key[:number]:
            yield ("key", number), f"{name!r} is there twice"
    yield from _name_problems(dataset)
    for column, said in dataset.columns.items():
        null = names(dataset.null if said.null is None else said.null)
        for path, message in _rule_problems(said, null):
            yield ("columns", column, *path), message


def matches(pattern: str, value: str) -> bool:
    """Whether the whole value matches.

    :raises ValueError: what is wrong with the pattern.
    """
    try:
        # By itself as well: it could close the group around it.
        pc.match_substring_regex(pa.array([""]), pattern)
        return bool(pc.match_substring_regex(pa.array([value]), rf"\A(?:{pattern})\z")[0].as_py())
    except pa.ArrowInvalid as exc:
        raise ValueError(str(exc).removeprefix("Invalid regular expression: ")) from exc


def _name_problems(dataset: Dataset) -> Iterator[Problem]:
    """Names of files' columns that have two meanings."""
    meanings = {column.casefold(): f"the name of column {column}" for column in dataset.columns}
    claims: list[tuple[Path, str, str]] = [
        (("columns", column, "source"), name, f"a source of column {column}")
        for column, said in dataset.columns.items()
        for name in names(said.source)
        if name.strip().casefold() != column.casefold()
    ]
    claims += [(("ignore",), name, "ignored") for name in names(dataset.ignore)]
    for path, name, meaning in claims:
        known = meanings.setdefault(name.strip().casefold(), meaning)
        if known != meaning:
            yield path, f"{name!r} is {known} already"


def _rule_problems(said: ColumnRules, null: tuple[str, ...]) -> Iterator[Problem]:
    if said.constant is not None:
        yield from _constant_problems(said)
        return
    if said.required and said.default is not None:
        yield ("required",), "with a default no row is without a value"
    yield from _format_problems(said)
    yield from _number_problems(said)
    yield from _pattern_problems(said)
    yield from _bound_problems(said)
    yield from _value_problems(said, null)
    yield from _default_problems(said)


def _constant_problems(said: ColumnRules) -> Iterator[Problem]:
    text = as_text(said.constant or "")
    if text.startswith("$") and text not in PLACES and not text.startswith("$$"):
        yield ("constant",), f"{text!r} is none of {', '.join(PLACES)}; a text that begins with $ is written with $$"
    for key in ColumnRules.__struct_fields__:
        if key != "constant" and getattr(said, key) != getattr(_NOTHING_SAID, key):
            yield (key,), "the column has a constant, so no field of the file is its value"


def _format_problems(said: ColumnRules) -> Iterator[Problem]:
    formats = names(said.formats)
    for number, text in enumerate(formats):
        path: Path = ("formats",) if isinstance(said.formats, str) else ("formats", number)
        if text in formats[:number]:
            yield path, f"{text!r} is there twice"
        elif text not in EPOCHS and text != ISO:
            try:
                matches(parse_format(text).pattern, "")
            except ValueError as exc:
                yield path, f"{text[:_SHOWN_CHARACTERS]!r}: {exc}"
    if said.day_first and formats:
        yield ("day_first",), "formats say already where the day stands"
    if (said.decimal != "." or said.thousands) and (formats or said.day_first):
        key = "thousands" if said.thousands else "decimal"
        yield (key,), f"is for numbers, and {'formats' if formats else 'day_first'} is for dates"


def _number_problems(said: ColumnRules) -> Iterator[Problem]:
    for key, value, blanks in (("decimal", said.decimal, False), ("thousands", said.thousands, True)):
        if key == "thousands" and not value:
            continue
        if len(value) != 1 or value.isalnum() or value in "+-" or (value.isspace() and not blanks):
            yield (key,), f"{value!r} is not one character that could stand in a number"
    if said.thousands and said.thousands == said.decimal:
        other = "; set decimal as well" if said.decimal == "." else ""
        yield ("thousands",), f"decimal is {said.decimal!r} too{other}"


def _pattern_problems(said: ColumnRules) -> Iterator[Problem]:
    if said.pattern is not None:
        try:
            matches(said.pattern, "")
        except ValueError as exc:
            yield ("pattern",), f"is no pattern of RE2: {exc}"


def _bound_problems(said: ColumnRules) -> Iterator[Problem]:
    found = []
    for key, value in (("min", said.min), ("max", said.max)):
        if value is not None:
            try:
                found.append(bound(value))
            except ValueError as exc:
                yield (key,), str(exc)
    if len(found) == 2:  # noqa: PLR2004 - both
        least, greatest = found
        try:
            if least > greatest:  # type: ignore[operator]  # what cannot be compared raises
                yield ("min",), "is more than max"
        except TypeError:
            yield ("min",), "and max are not of one kind"


def _value_problems(said: ColumnRules, null: tuple[str, ...]) -> Iterator[Problem]:
    if said.values is None:
        return
    if not said.values:
        yield ("values",), "is empty, so no row could be loaded"
    for number, value in enumerate(map(as_text, said.values)):
        if value in null:
            yield ("values", number), f"{value!r} means NULL"
        elif _cased(said, value) != value:
            yield ("values", number), f"{value!r} cannot be: case is {said.case!r}"
        elif said.pattern is not None and not _allows(matches, said.pattern, value):
            yield ("values", number), f"{value!r} does not match pattern"


def _default_problems(said: ColumnRules) -> Iterator[Problem]:
    if said.default is None:
        return
    text = _cased(said, as_text(said.default))
    if said.values is not None and text not in map(as_text, said.values):
        yield ("default",), f"{text!r} is not among values"
    if said.pattern is not None and not _allows(matches, said.pattern, text):
        yield ("default",), f"{text!r} does not match pattern"
    formats = names(said.formats)
    if formats and not any(_allows(_fits, each, text) for each in formats):
        yield ("default",), f"{text!r} fits none of formats: it is written as a file would write it"
    if not formats and said.decimal == "." and not said.thousands:
        for key, value, sign in (("min", said.min, 1), ("max", said.max, -1)):
            if value is not None and not _allows(_in_order, value, text, sign):
                yield ("default",), f"{text!r} is beyond {key}"


def _cased(said: ColumnRules, text: str) -> str:
    return text.upper() if said.case == "upper" else text.lower() if said.case == "lower" else text


def _allows(test: Callable[..., bool], *arguments: object) -> bool:
    """The test's answer; what it cannot tell is said elsewhere, or at the table."""
    try:
        return test(*arguments)
    except (ValueError, TypeError):
        return True


def _in_order(value: float | str, text: str, sign: int) -> bool:
    least, greatest = (bound(value), bound(text))[::sign]
    return bool(least <= greatest)  # type: ignore[operator]  # what cannot be compared raises


def _fits(each: str, text: str) -> bool:
    if each in EPOCHS:
        return _EPOCH.fullmatch(text) is not None
    if each == ISO:
        return _ISO.fullmatch(text) is not None
    parse_format(each)
    try:
        datetime.strptime(text, each)  # noqa: DTZ007
    except ValueError:
        return False
    return True
