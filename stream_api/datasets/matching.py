"""The names in a file set against the columns of a table."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from stream_api.datasets.catalogue import Column, Table
from stream_api.datasets.dataset import Dataset
from stream_api.datasets.rules import names
from stream_api.errors import Failure
from stream_api.options import Options

#: Where a name leads that is not loaded; no column can be called so.
_NOWHERE: Final = "\0"
#: Names that one message shows, and characters of each: a header may be a megabyte of nonsense.
_SHOWN_NAMES: Final = 50
_SHOWN_CHARACTERS: Final = 80
#: What may separate the fields of a file.
_DELIMITERS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True, slots=True)
class Matched:
    """The file's columns, in its order.

    :param fields: their names. :param columns: the table's column that each fills; `None` where it is not loaded.
    """

    fields: tuple[str, ...]
    columns: tuple[Column | None, ...]


def match_header(table: Table, dataset: Dataset, header: Sequence[str], options: Options, *, delimiter: str) -> Matched:
    """Find the table's column for each of the file's.

    First comes what the upload's mapping says, then what the dataset ignores and calls its columns, then the columns'
    own names. A name matches exactly once surrounding white space is trimmed, else without regard to case if that finds
    a single column.

    :param header: the names in the file's first record; of no meaning where that is no header.
    :param delimiter: of the file, for a hint.
    :raises Failure: `header_mismatch`, with all names at fault in `missing`, `unknown`, `repeated` and `generated`,
        and `nearest`: for an unknown name those that look like it. `option_invalid`: the mapping names a column that
        the table does not have.
    """
    free = {c.name: c for c in table.columns if not is_constant(dataset, c.name)}
    _check_mapping(options, dataset, free, table)
    has_header, given = dataset.has_header(options), options.columns or dataset.fields
    if given and has_header and len(header) != len(given):
        detail = f"The file's header has {len(header)} columns, and {len(given)} names are given in their place."
        raise Failure("header_mismatch", detail, missing=[], unknown=[], repeated=[], generated=[], nearest={})
    own = {name: name for name in free}
    # Without any names the fields are the table's columns, as in COPY without a list of them.
    fields = given or (tuple(header) if has_header else tuple(c.name for c in free.values() if not c.generated))
    layers = [_Names({name: _NOWHERE if column is None else column for name, column in options.mapping.items()})]
    if given or has_header:
        layers.append(_Names(_said(dataset)))
    layers.append(_Names(own))
    found = [_find(layers, name) for name in fields]
    columns = tuple(None if column is None else free.get(column) for column in found)
    unknown = [name for name, column in zip(fields, found, strict=True) if column is None]
    if dataset.unknown_columns == "ignore":
        unknown = []
    times = Counter(column.name for column in columns if column is not None)
    repeated = [name for name, count in times.items() if count > 1]
    generated = [c.name for c in table.columns if c.name in times and c.generated]
    missing = [c.name for c in free.values() if c.name not in times and _must_be_given(c, table, dataset)]
    if unknown or repeated or generated or missing or not times:
        known = [name for c in free.values() if not c.generated for name in (c.name, *_sources(dataset, c.name))]
        known += options.mapping  # it may be that which is misspelled
        raise mismatch(
            table,
            known=known,
            header=fields,
            delimiter=delimiter,
            missing=missing,
            unknown=unknown,
            repeated=repeated,
            generated=generated,
        )
    return Matched(fields, columns)


def is_constant(dataset: Dataset, column: str) -> bool:
    """Whether the dataset gives the column the same value in every row."""
    said = dataset.columns.get(column)
    return said is not None and said.constant is not None


class _Names:
    """Names and the columns that they lead to."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        self._exact = {name.strip(): column for name, column in targets.items()}
        self._folded: dict[str, str | None] = {}
        for name, column in self._exact.items():
            key = name.casefold()
            self._folded[key] = column if self._folded.get(key, column) == column else None

    def find(self, name: str) -> str | None:
        trimmed = name.strip()
        return self._exact.get(trimmed, self._folded.get(trimmed.casefold()))


def _find(layers: Sequence[_Names], name: str) -> str | None:
    return next((column for layer in layers if (column := layer.find(name)) is not None), None)


def _said(dataset: Dataset) -> dict[str, str]:
    """The names that the dataset has for columns of files."""
    said = dict.fromkeys(names(dataset.ignore), _NOWHERE)
    return said | {name: column for column in dataset.columns for name in _sources(dataset, column)}


def _sources(dataset: Dataset, column: str) -> tuple[str, ...]:
    said = dataset.columns.get(column)
    return () if said is None else names(said.source)


def _check_mapping(options: Options, dataset: Dataset, free: Mapping[str, Column], table: Table) -> None:
    wrong = sorted({column for column in options.mapping.values() if column is not None and column not in free})
    if wrong:
        constant = [column for column in wrong if is_constant(dataset, column)]
        why = f" ({listed(constant)}: the dataset gives the value)" if constant else ""
        detail = f"mapping names columns that a file cannot fill in table {table.sql_name}: {listed(wrong)}{why}."
        raise Failure("option_invalid", detail, field="mapping", columns=_bounded(wrong))


def _must_be_given(column: Column, table: Table, dataset: Dataset) -> bool:
    said = dataset.columns.get(column.name)
    if said is not None and (said.required or said.default is not None):
        return said.required
    return must_be_given(column, table)


def must_be_given(column: Column, table: Table) -> bool:
    """Whether a row without the column cannot be stored."""
    return column.not_null and not (column.has_default or column.generated or table.before_insert)


def mismatch(
    table: Table,
    *,
    known: Iterable[str],
    header: Sequence[str],
    delimiter: str,
    missing: list[str],
    unknown: list[str],
    repeated: list[str],
    generated: list[str],
) -> Failure:
    """The failure for a header that does not fit.

    :param known: the names that a file may have.
    """
    folded = {name.casefold(): name for name in known}
    nearest = {_shorten(name): close for name in unknown[:_SHOWN_NAMES] if (close := _nearest(folded, name))}
    parts = []
    if missing:
        parts.append(f"missing: {listed(missing)}")
    if unknown:
        parts.append(f"unknown: {listed(_with_hint(name, nearest) for name in unknown)}")
    if repeated:
        parts.append(f"given more than once: {listed(repeated)}")
    if generated:
        parts.append(f"computed by the database, so they cannot be loaded: {listed(generated)}")
    if not parts:
        parts.append("it names no column")
    detail = f"The file's header does not fit table {table.sql_name}: {'; '.join(parts)}."
    if len(header) == 1 and (other := next((found for found in _DELIMITERS if found in header[0]), None)):
        taken = _DELIMITERS.get(delimiter, repr(delimiter))
        detail += f" Fields were taken to be separated by {taken}, and the header has {_DELIMITERS[other]}."
    extra: dict[str, Any] = {
        "missing": _bounded(missing),
        "unknown": _bounded(unknown),
        "repeated": _bounded(repeated),
        "generated": _bounded(generated),
        "nearest": nearest,
    }
    return Failure("header_mismatch", detail, **extra)


def _nearest(folded: Mapping[str, str], name: str) -> list[str]:
    close = difflib.get_close_matches(_shorten(name).strip().casefold(), folded, n=3)
    return [folded[found] for found in close]


def _with_hint(name: str, nearest: dict[str, list[str]]) -> str:
    shown = _shorten(name)
    close = nearest.get(shown)
    return f"{shown or '(empty)'} (did you mean {' or '.join(close)}?)" if close else shown or "(empty)"


def _shorten(name: str) -> str:
    return name if len(name) <= _SHOWN_CHARACTERS else name[: _SHOWN_CHARACTERS - 1] + "…"


def _bounded(found: list[str]) -> list[str]:
    return [_shorten(name) for name in found[:_SHOWN_NAMES]]


def listed(found: Iterable[str]) -> str:
    """Names in a sentence, not too many."""
    every = list(found)
    more = len(every) - _SHOWN_NAMES
    shown = ", ".join(every[:_SHOWN_NAMES])
    return f"{shown} and {more} more" if more > 0 else shown
