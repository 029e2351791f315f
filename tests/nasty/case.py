"""What a nasty file is: some bytes, and the rows and rejections that they must give, written down by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: A row as the table shows it, every value as text; `None` is NULL.
Row = tuple[str | None, ...]
#: Line, byte offset and code.
Reject = tuple[int, int, str]


@dataclass(frozen=True)
class Nasty:
    """One file.

    :param name: what is nasty about it.
    :param rows: of the table afterwards, in the file's order; the columns as the table has them.
    :param rejects: in the file's order.
    :param fails: the code of the load's failure, if it is not to load at all.
    :param given: form fields about the dialect; all else is found from the file.
    :param table: its columns, in SQL.
    :param before: SQL that the table's columns need.
    :param limits: settings that bound what is read.
    :param lanes: 1 where it matters which of two rows comes first.
    """

    name: str
    data: bytes
    rows: list[Row] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    fails: str | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    table: str = "a text, b text"
    before: str = ""
    limits: Mapping[str, int] = field(default_factory=dict)
    lanes: int = 2

    @property
    def is_plain(self) -> bool:
        """Whether the table takes whatever has the right number of fields, as it is and in the file's order."""
        return all(column.endswith(" text") for column in self.table.split(", "))
