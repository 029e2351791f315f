"""COPY of a segment's rows: into the target table, a holding table, or a staging table."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import asyncpg

from stream_api.errors import Failure
from stream_api.load.model import Encoded, Int64s
from stream_api.load.pieces import pieces
from stream_api.load.rejects import Rejects

#: Binary COPY data begins with its signature, flags and the length of an empty extension, and ends with a count of -1
#: (https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format").
COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER: Final = b"\xff\xff"
#: The context of an error in COPY names the row by its number within the COPY: `COPY orders, line 7778`.
_COPY_LINE: Final = re.compile(r"\bline (\d+)")


@dataclass(frozen=True, slots=True)
class Into:
    """What a COPY goes into; names are unquoted, as asyncpg wants them.

    :param columns: those that are filled, in the order of the encoded rows.
    """

    schema: str
    table: str
    columns: tuple[str, ...]


@dataclass(slots=True)
class Sent:
    """What has been sent of one segment."""

    end: int = 0
    lines: int = 0
    read: int = 0
    rejections: list[Rejects] = field(default_factory=list)
    header: bytes = b""
    binary_lines: list[Int64s] = field(default_factory=list)
    csv: list[bytes] = field(default_factory=list)
    csv_lines: list[Int64s] = field(default_factory=list)
    #: Lines of the rows of the COPY that runs now.
    copying: list[Int64s] = field(default_factory=list)
    #: The segment is this lane's to load, and its batches are being used up.
    claimed: bool = False

    def pass_over(self, encoded: Encoded) -> None:
        """Note only where the segment ends."""
        self.end = encoded.span.end
        self.lines += encoded.span.lines
        self.header = self.header or encoded.header

    def forget(self) -> None:
        """Let go of what is held, before the segment is loaded anew."""
        for held in (self.rejections, self.binary_lines, self.csv, self.csv_lines, self.copying):
            held.clear()

    def add(self, encoded: Encoded) -> None:
        """Note a batch. Its binary rows are not held."""
        self.pass_over(encoded)
        self.read += encoded.read
        if encoded.rejections:
            self.rejections.append(encoded.rejections)
        if encoded.binary_lines.size:
            self.binary_lines.append(encoded.binary_lines)
        if encoded.csv_lines.size:
            self.csv.append(encoded.csv)
            self.csv_lines.append(encoded.csv_lines)

    @property
    def rows(self) -> int:
        """Rows that go into the table."""
        return sum(lines.size for lines in (*self.binary_lines, *self.csv_lines))

    def file_line(self, exc: asyncpg.PostgresError) -> int | None:
        """The line of the file of the row that Postgres names in the error's context, if it names one."""
        named = _COPY_LINE.search(exc.context or "")
        row = int(named[1]) if named else 0
        for lines in self.copying:
            if 1 <= row <= lines.size:
                return int(lines[row - 1])
            row -= lines.size
        return None


async def first_binary(batches: AsyncIterator[Encoded], sent: Sent) -> Encoded | None:
    """The first batch with binary rows: where there is none, there is no binary COPY."""
    async for encoded in batches:
        sent.add(encoded)
        if encoded.binary_lines.size:
            return encoded
    return None


async def copy_segment(
    connection: asyncpg.Connection, into: Into, batches: AsyncIterator[Encoded], first: Encoded | None, sent: Sent
) -> int:
    """COPY all rows of a segment.

    :param first: of `first_binary`.
    :returns: how many Postgres says it took.
    :raises Failure: `rows_dropped` if those are more than were sent.
    """
    taken = 0
    if first is not None:
        sent.copying = sent.binary_lines
        taken += await copy_in(connection, into, _binary(first, batches, sent), "binary")
    if sent.csv:
        sent.copying = sent.csv_lines
        taken += await copy_in(connection, into, pieces(b"".join(sent.csv)), "csv")
    if taken > sent.rows:
        raise Failure("rows_dropped", f"{sent.rows} rows were sent and {taken} were taken")
    return taken


async def copy_in(
    connection: asyncpg.Connection,
    into: Into,
    source: AsyncIterator[bytes | memoryview],
    copy_format: Literal["binary", "csv"],
) -> int:
    """One COPY.

    :param source: as `encode_csv` or the binary encoder give it.
    :returns: how many rows Postgres says it took.
    """
    options: dict[str, Any] = {"null": "", "delimiter": ",", "quote": '"'} if copy_format == "csv" else {}
    tag = await connection.copy_to_table(
        into.table,
        schema_name=into.schema,
        columns=into.columns,
        source=source,  # type: ignore[arg-type]  # memoryviews work as well as bytes
        format=copy_format,
        encoding="utf8",
        **options,
    )
    return int(tag.removeprefix("COPY "))


async def _binary(first: Encoded, batches: AsyncIterator[Encoded], sent: Sent) -> AsyncIterator[bytes | memoryview]:
    yield COPY_HEADER
    async for piece in pieces(*first.binary):
        yield piece
    async for encoded in batches:
        sent.add(encoded)
        async for piece in pieces(*encoded.binary):
            yield piece
    yield COPY_TRAILER
