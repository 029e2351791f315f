"""The file that names datasets: TOML, checked as a whole, and every error said with its line and column."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from stream_api.config import RejectLimit, Settings, checked_table_name
from stream_api.datasets.checking import check_dataset
from stream_api.datasets.dataset import BUILT_IN, Dataset, Datasets, built_in
from stream_api.datasets.places import Path as Keys
from stream_api.datasets.places import Place, find_places
from stream_api.datasets.rules import ColumnRules

_ROOT: Final = "datasets"
#: Names go into form fields, metrics and keys.
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
#: Keys that are set otherwise.
_NOT_OF_THE_FILE: Final = frozenset({"name"})
_SYNTAX_PLACE: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_EXPECTED: Final = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
#: Types as a person who writes TOML calls them.
_WORDS: Final = {
    "array": "a list in brackets",
    "bool": "true or false",
    "str": "a text",
    "int": "a number",
    "float": "a number",
    "object": "a table",
}
_ITEM: Final = re.compile(r" - at `\$(?:\[(\d+)\])?.*`$")


class DatasetsInvalid(Exception):
    """The file cannot be used.

    :param problems: all that is wrong with it, each as `file:line:column: what`.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems: Final = problems


def datasets_of(settings: Settings) -> Datasets:
    """The datasets that these settings name: those of the file, if there is one, and the one that is built in.

    :raises DatasetsInvalid: the file cannot be read or is not right.
    """
    datasets = built_in(settings.target_table)
    if settings.datasets is None:
        return datasets
    found = read_datasets(settings.datasets)
    if BUILT_IN in found and "target_table" in settings.model_fields_set:
        message = (
            f"{settings.datasets}: the file has a dataset {BUILT_IN}, and STREAM_API_TARGET_TABLE is set as well: "
            "one of them may say what its table is"
        )
        raise DatasetsInvalid([message])
    return {**datasets, **found}


def read_datasets(path: Path) -> Datasets:
    """Read a file.

    :raises DatasetsInvalid: it cannot be read, or something in it is not right.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise DatasetsInvalid([f"{path}: {exc.strerror or exc}"]) from exc
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        column = exc.start - (data.rfind(b"\n", 0, exc.start) + 1) + 1
        raise DatasetsInvalid([f"{path}:{line}:{column}: this is not UTF-8"]) from exc
    return parse_datasets(text, str(path))


def parse_datasets(text: str, name: str) -> Datasets:
    """The datasets in a file's text.

    :param name: of the file, for messages.
    :raises DatasetsInvalid: something in it is not right.
    """
    text = text.replace("\r\n", "\n")
    try:
        content = _plain(tomllib.loads(text))
    except tomllib.TOMLDecodeError as exc:
        raise DatasetsInvalid([_syntax_error(str(exc), text, name)]) from exc
    except RecursionError as exc:
        raise DatasetsInvalid([f"{name}: tables or arrays are nested too deep"]) from exc
    except ValueError as exc:
        # Python reads no number of thousands of digits.
        raise DatasetsInvalid([f"{name}: {exc}"]) from exc
    problems = _Problems()
    datasets = _read(content, problems)
    if problems.found:
        places = find_places(text)
        found = sorted((_place(places, path), message) for path, message in problems.found)
        raise DatasetsInvalid([f"{name}:{place.line}:{place.column}: {message}" for place, message in found])
    return datasets


class _Problems:
    """What is wrong, and under which key."""

    def __init__(self) -> None:
        self.found: list[tuple[Keys, str]] = []

    def add(self, path: Keys, message: str) -> None:
        self.found.append((path, f"{_dotted(path)}: {message}" if path else message))


def _read(content: Mapping[str, Any], problems: _Problems) -> Datasets:
    for key in content:
        if key != _ROOT:
            problems.add((key,), f"is not known; datasets are tables [{_ROOT}.NAME]")
    named = content.get(_ROOT, {})
    if not isinstance(named, dict):
        problems.add((_ROOT,), f"is no table; datasets are tables [{_ROOT}.NAME]")
        return {}
    datasets: dict[str, Dataset] = {}
    for name, said in named.items():
        path = (_ROOT, name)
        if not isinstance(said, dict):
            problems.add(path, "is no table")
        elif _NAME.fullmatch(name) is None:
            problems.add(path, "the name may have 63 letters, digits, underscores, dots and hyphens")
        else:
            datasets[name] = _dataset(name, said, path, problems)
    return datasets


def _dataset(name: str, said: Mapping[str, Any], path: Keys, problems: _Problems) -> Dataset:
    if isinstance(said.get("max_rejects"), int):
        said = {**said, "max_rejects": str(said["max_rejects"])}
    values = _converted(Dataset, {key: value for key, value in said.items() if key != "columns"}, path, problems)
    columns = said.get("columns", {})
    if not isinstance(columns, dict):
        problems.add((*path, "columns"), "is no table; names of the file's columns, in their order, are `fields`")
        columns = {}
    rules = dict(_columns(columns, (*path, "columns"), problems))
    for key, check in (("table", checked_table_name), ("max_rejects", RejectLimit.parse)):
        try:
            if key in values:
                check(values[key])
        except ValueError as exc:
            problems.add((*path, key), str(exc))
    if "table" not in said:
        problems.add(path, "has no table")
    dataset = Dataset(name=name, columns=rules, **{"table": "", **values})
    for within, message in check_dataset(dataset):
        problems.add((*path, *within), message)
    return dataset


def _columns(columns: Mapping[str, Any], path: Keys, problems: _Problems) -> Iterator[tuple[str, ColumnRules]]:
    for column, said in columns.items():
        if isinstance(said, dict):
            yield column, ColumnRules(**_converted(ColumnRules, said, (*path, column), problems))
        else:
            problems.add((*path, column), "is no table of rules")


def _converted(
    struct: type[msgspec.Struct], said: Mapping[str, Any], path: Keys, problems: _Problems
) -> dict[str, Any]:
    """The values of a table by their types; what is wrong with some keys keeps nobody from the others."""
    types = {field.name: field.type for field in msgspec.structs.fields(struct) if field.name not in _NOT_OF_THE_FILE}
    values: dict[str, Any] = {}
    for key, value in said.items():
        if key not in types:
            close = difflib.get_close_matches(key, types, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(types)}"
            problems.add((*path, key), f"is not known; {hint}")
            continue
        try:
            values[key] = msgspec.convert(value, types[key])
        except msgspec.ValidationError as exc:
            within, message = _type_error(str(exc), types[key])
            problems.add((*path, key, *within), message)
            continue
        each = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and "\0" in text for text in each):
            problems.add((*path, key), "has a NUL character, which PostgreSQL cannot store")
            del values[key]
    return values


def _type_error(message: str, wanted: Any) -> tuple[Keys, str]:
    item = _ITEM.search(message)
    within: Keys = (int(item[1]),) if item is not None and item[1] else ()
    allowed = [
        choice for each in (wanted, *get_args(wanted)) if get_origin(each) is Literal for choice in get_args(each)
    ]
    if allowed:
        return within, f"may be {' or '.join(map(repr, allowed))}"
    return within, _EXPECTED.sub(_in_words, _ITEM.sub("", message))


def _in_words(found: re.Match[str]) -> str:
    wanted, got = ([_WORDS.get(each, each) for each in side.split(" | ") if each != "null"] for side in found.groups())
    return f"must be {' or '.join(wanted)}, not {' or '.join(got)}"


def _plain(value: Any) -> Any:
    """Dates and times as their text: no rule has them otherwise.

    :raises ValueError: of a number that cannot be written as a text.
    """
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, int):
        str(value)  # written as 0xf…f it can have more digits than Python makes a text of
    return value


def _syntax_error(message: str, text: str, name: str) -> str:
    found = _SYNTAX_PLACE.search(message)
    if found is None or found[1] is None:
        place = Place(text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1)
    else:
        place = Place(int(found[1]), int(found[2]))
    return f"{name}:{place.line}:{place.column}: {_SYNTAX_PLACE.sub('', message)}"


def _place(places: Mapping[Keys, Place], path: Keys) -> Place:
    """Where a key stands, or what is nearest above it."""
    while path:
        if path in places:
            return places[path]
        path = path[:-1]
    return Place(1, 1)


def _dotted(path: Iterable[str | int]) -> str:
    text = ""
    for each in path:
        if isinstance(each, int):
            text += f"[{each}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", each) is not None
            text += ("." if text else "") + (each if bare else f'"{each}"')
    return text
