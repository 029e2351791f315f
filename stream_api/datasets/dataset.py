"""Datasets: the named destinations that files may be uploaded to, and nothing else may."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from stream_api.datasets.rules import ColumnRules, Names
from stream_api.errors import Failure
from stream_api.options import Conflict, Mode, Options

#: The dataset that is always there.
BUILT_IN: Final = "webhook_events"


class Dataset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named destination.

    :param table: as SQL names it.
    :param mode, conflict, key: where the upload says nothing; see `Options`.
    :param max_rejects: as the form field `maxRejects`; empty where the setting decides.
    :param unknown_columns: what becomes of the file's columns that the table does not have: the file is refused, or
        they are not loaded.
    :param ignore: names of the file's columns that are not loaded.
    :param header: the first record of files names the columns; `False` when it is a row already.
    :param fields: names of the file's columns, in its order, in place of those in its header.
    :param trim: for all columns, see `ColumnRules`. :param null: likewise.
    :param columns: rules, by the table's columns.
    """

    name: str
    table: str
    mode: Mode = "append"
    conflict: Conflict = "error"
    key: tuple[str, ...] = ()
    max_rejects: str = ""
    unknown_columns: Literal["refuse", "ignore"] = "refuse"
    ignore: Names = ()
    header: bool = True
    fields: tuple[str, ...] = ()
    trim: bool = False
    null: Names = ()
    columns: dict[str, ColumnRules] = msgspec.field(default_factory=dict)

    def has_header(self, options: Options) -> bool:
        """Whether the first record of a file names its columns."""
        return self.header if options.header is None else options.header


Datasets = Mapping[str, Dataset]


def built_in(table: str) -> Datasets:
    """The datasets where no file names others.

    :param table: of the built-in one.
    """
    return {BUILT_IN: Dataset(name=BUILT_IN, table=table)}


def find_dataset(datasets: Datasets, name: str) -> Dataset:
    """The dataset of this name.

    :raises Failure: `dataset_unknown`, with the names that there are in `datasets`.
    """
    found = datasets.get(name)
    if found is None:
        close = difflib.get_close_matches(name[:100], datasets, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise Failure("dataset_unknown", f"There is no dataset {name[:100]!r}.{hint}", datasets=sorted(datasets))
    return found
