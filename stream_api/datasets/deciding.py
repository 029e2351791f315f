"""What a load is to do with the table, decided when its plan is made: as the upload asks, else as the dataset says."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, TypedDict

from stream_api.datasets.catalogue import Table
from stream_api.datasets.dataset import Dataset
from stream_api.errors import Failure
from stream_api.options import Conflict, Mode, Options

#: Names that one message shows.
_SHOWN: Final = 20


class Decision(TypedDict):
    """The fields of a plan that are decided here."""

    mode: Mode
    conflict: Conflict
    key: tuple[str, ...]
    dry_run: bool


def decide(table: Table, dataset: Dataset, options: Options, filled: Collection[str]) -> Decision:
    """What the load of a file is to do.

    :param options: win over the dataset.
    :param filled: the table's columns that the load fills.
    :raises Failure: `conflict_key_invalid`.
    """
    conflict = options.conflict or dataset.conflict
    key = options.key or dataset.key
    return {
        "mode": options.mode or dataset.mode,
        "conflict": conflict,
        "key": () if conflict == "error" else _key(table, key, filled),
        "dry_run": options.dry_run,
    }


def check_key(table: Table, conflict: Conflict, key: Sequence[str], filled: Collection[str]) -> None:
    """Check that what was decided earlier still can be done.

    :raises Failure: `conflict_key_invalid`.
    """
    if conflict != "error":
        _key(table, key, filled)


def _key(table: Table, named: Sequence[str], filled: Collection[str]) -> tuple[str, ...]:
    """The columns that rows are known by: those named, or the primary key."""
    if not named and not table.primary_key:
        detail = f"{table.sql_name} has no primary key by which rows could be told apart, "
        if table.unique_keys:
            detail += f"but unique indexes on {'; '.join(map(_listed, table.unique_keys))}: name one (key=column,…)."
        else:
            detail += "nor another unique index: create one, or load with conflict=error."
        raise _invalid(detail, table)
    key = tuple(_column(table, name) for name in named) or table.primary_key
    if len(set(key)) < len(key):
        raise _invalid(f"The key names a column twice: {_listed(named)}.", table)
    if set(key) not in [set(unique) for unique in table.unique_keys]:
        detail = (
            f"{table.sql_name} has no unique index on exactly {_listed(key)}: one that is neither partial nor "
            f"deferrable nor of expressions. It has: {'; '.join(map(_listed, table.unique_keys)) or 'none'}."
        )
        raise _invalid(detail, table)
    unfilled = [name for name in key if name not in filled]
    if unfilled:
        raise _invalid(f"The key wants columns that the file does not fill: {_listed(unfilled)}.", table)
    return key


def _column(table: Table, name: str) -> str:
    """The table's column of this name, as a header may write it."""
    names = [column.name for column in table.columns]
    if name in names:
        return name
    folded = [each for each in names if each.casefold() == name.casefold()]
    if len(folded) != 1:
        raise _invalid(f"{table.sql_name} has no column {name[:100]!r} for the key.", table)
    return folded[0]


def _invalid(detail: str, table: Table) -> Failure:
    keys = [list(key) for key in table.unique_keys[:_SHOWN]]
    return Failure("conflict_key_invalid", detail, table=table.sql_name, uniqueKeys=keys)


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return f"({', '.join(shown[:_SHOWN])}{', …' if len(shown) > _SHOWN else ''})"
