"""The ledger rows of segments: claimed before a segment's COPY, completed after it, in one transaction with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from stream_api.errors import Failure, RunLost
from stream_api.ledger.errors import translated
from stream_api.ledger.jsonb import as_jsonb
from stream_api.ledger.literals import TRUE, Sql, call, literal
from stream_api.ledger.pool import Connection

#: Seconds that a statement of this module may take. Its waits for locks end after `LOCK_TIMEOUT_SECONDS`; this is for
#: a server that has stopped answering.
_STATEMENT_TIMEOUT_SECONDS: Final = 30.0

#: SQLSTATEs of the functions of migration 0006.
_RUN_LOST: Final = "SA001"
_LOADED: Final = "SA002"
_OTHER_TABLE: Final = "SA003"
_CHANGED: Final = "SA004"

_REVISE: Final = """
UPDATE stream_api.segments
SET rows_inserted = $3, rows_updated = $4, rows_skipped = $5, rejected = $6::jsonb,
    rejects = CASE WHEN $11 THEN $7 ELSE rejects END, rejects_key = CASE WHEN $11 THEN $8 ELSE rejects_key END,
    first_rejects = CASE WHEN $11 THEN $9::jsonb ELSE first_rejects END
WHERE upload_id = $1 AND number = $2 AND rows_read = $10
RETURNING number
"""
_COMMITTED: Final = """
SELECT number, start_byte, end_byte, first_line, lines, rows_read, rows_inserted, rows_updated, rows_skipped, rejected
FROM stream_api.segments WHERE upload_id = $1 AND table_oid IS NOT NULL ORDER BY number
"""
_KEPT: Final = "SELECT rejects, rejects_key FROM stream_api.segments WHERE upload_id = $1 AND number = $2"
# Until the transaction ends. Its key has 64 bits: uploads that share one only wait for each other's commits.
_COUNT_ALONE: Final = "SELECT pg_advisory_xact_lock(hashtextextended('stream-api rejects ' || $1::text, 0))"
_COUNT: Final = """
SELECT coalesce(sum(rows_read), 0)::bigint AS read,
       coalesce(sum(rows_read - rows_inserted - rows_updated - rows_skipped), 0)::bigint AS failed
FROM stream_api.segments WHERE upload_id = $1 AND table_oid IS NOT NULL
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFigures:
    """What is known of a segment once it is loaded.

    :param number: of the segment, from 0.
    :param start: byte of the decoded file at which it begins; the header belongs to segment 0.
    :param end: the byte just past it, where the next segment begins.
    :param first_line: line of the file on which it begins, from 1.
    :param lines: line ends in it, quoted ones too.
    :param rows_read: rows that the file has in it: inserted + updated + skipped + all rejected.
    :param rejected: rows that were not loaded, by code.
    :param first_rejects: JSON-ready, of the first ten of them: line, byteOffset, column, code and reason.
    """

    number: int
    start: int
    end: int
    first_line: int
    lines: int
    rows_read: int
    rows_inserted: int
    rows_updated: int = 0
    rows_skipped: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)
    first_rejects: tuple[dict[str, Any], ...] = ()

    @property
    def rows_processed(self) -> int:
        """Rows that the table has taken: inserted, updated or skipped."""
        return self.rows_inserted + self.rows_updated + self.rows_skipped

    @property
    def rows_failed(self) -> int:
        """Rows that were not loaded."""
        return sum(self.rejected.values())

    def __post_init__(self) -> None:
        if self.rows_read != self.rows_processed + self.rows_failed:
            msg = (
                f"segment {self.number}: {self.rows_read} rows read, but {self.rows_processed} processed "
                f"and {self.rows_failed} failed"
            )
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedSegment(SegmentFigures):
    """A segment that is loaded, as the ledger has it."""

    @classmethod
    def from_record(cls, record: asyncpg.Record) -> CommittedSegment:
        """From a row of `stream_api.segments`."""
        return cls(
            number=record["number"],
            start=record["start_byte"],
            end=record["end_byte"],
            first_line=record["first_line"],
            lines=record["lines"],
            rows_read=record["rows_read"],
            rows_inserted=record["rows_inserted"],
            rows_updated=record["rows_updated"],
            rows_skipped=record["rows_skipped"],
            rejected=msgspec.json.decode(record["rejected"], type=dict[str, int]),
        )


async def claim_segment(connection: Connection, upload_id: UUID, run: int, number: int) -> bool:
    """Begin the transaction of a segment, with the fence and its ledger row, in one round trip.

    Whatever is raised, the transaction is the caller's to roll back. Until it ends `lock_timeout` is 0.

    :returns: `True` if the segment is to be loaded in this transaction; `False`, without one, if it is loaded already.
    :raises RunLost: the upload is in an end state, or another run has taken it.
    :raises Failure: `database_unavailable`, also when the fence or the segment is held for longer than the time-out
        for locks; `database_refused`, transient where the migration is missing.
    """
    claim = call("stream_api.claim_segment", literal(upload_id), literal(run), literal(number))
    with translated(connection):
        try:
            await connection.execute(f"BEGIN; SELECT {claim}", timeout=_STATEMENT_TIMEOUT_SECONDS)
        except asyncpg.PostgresError as exc:
            if _is_ours(exc, _RUN_LOST):
                raise RunLost(f"run {run} of upload {upload_id} is over") from exc
            if isinstance(exc, asyncpg.UndefinedFunctionError):
                detail = "Functions of the service are missing: run `stream-api migrate` on this database"
                raise Failure("database_refused", detail, transient=True, sqlstate=exc.sqlstate) from exc
            if not _is_ours(exc, _LOADED):
                raise
            await connection.execute("ROLLBACK", timeout=_STATEMENT_TIMEOUT_SECONDS)
            return False
    return True


@dataclass(frozen=True, slots=True)
class Kept:
    """What a ledger row keeps of a segment beside its figures.

    :param rejects: the rejections, packed; `None` where there are none, or too many for a row.
    :param rejects_key: of the object that has them instead, and is already stored.
    :param header: of the file, with what stands before it; `None` but for the segment that holds it.
    """

    rejects: bytes | None = None
    rejects_key: str | None = None
    header: bytes | None = None


NOTHING_KEPT: Final = Kept()


async def count_rejected(connection: Connection, upload_id: UUID, *, alone: bool) -> tuple[int, int]:
    """Rows read and rows rejected, summed over the committed segments.

    :param alone: until the caller's transaction ends nobody else counts alone: what is decided by the sum holds when it
        commits. So that is for the end of a transaction, when no lock is waited for any more.

    :raises Failure: `database_unavailable`, `database_refused`.
    """
    with translated(connection):
        if alone:
            # A statement of its own: the sum has to see what was committed while this one waited.
            await connection.execute(_COUNT_ALONE, str(upload_id), timeout=_STATEMENT_TIMEOUT_SECONDS)
        row = await connection.fetchrow(_COUNT, upload_id, timeout=_STATEMENT_TIMEOUT_SECONDS)
    assert row is not None  # noqa: S101 (an aggregate is always one row)
    return row["read"], row["failed"]


async def commit_segment(
    connection: Connection,
    upload_id: UUID,
    figures: SegmentFigures,
    table: str,
    kept: Kept = NOTHING_KEPT,
    *,
    as_meant: Sql = TRUE,
) -> None:
    """Complete the ledger row of a segment, after its COPY, and commit its transaction, in one round trip.

    Whatever is raised, the transaction is the caller's to roll back, if there still is one.

    :param table: the table that the COPY went into, as SQL names it.
    :param as_meant: a condition in SQL: the table is still the one that the rows were meant for.
    :raises Failure: `plan_changed` if that is not the table that the upload was taken for: its ledger row would
        otherwise be taken for a stale one, and the segment loaded twice. `database_unavailable`, also when the table
        is not as it was meant to be: it is looked at anew then. `database_refused`.
    """
    record = call(
        "stream_api.record_segment",
        literal(upload_id),
        literal(figures.number),
        literal(table),
        as_meant,
        literal(figures.start),
        literal(figures.end),
        literal(figures.first_line),
        literal(figures.lines),
        literal(figures.rows_read),
        literal(figures.rows_inserted),
        literal(figures.rows_updated),
        literal(figures.rows_skipped),
        literal(as_jsonb(figures.rejected)),
        literal(kept.rejects),
        literal(kept.rejects_key),
        literal(as_jsonb(figures.first_rejects) if figures.first_rejects else None),
        literal(kept.header),
    )
    with translated(connection):
        try:
            await connection.execute(f"SELECT {record}; COMMIT", timeout=_STATEMENT_TIMEOUT_SECONDS)
        except asyncpg.PostgresError as exc:
            if _is_ours(exc, _OTHER_TABLE):
                detail = f"The segment went into {table}, which is not the table that this upload was taken for"
                raise Failure("plan_changed", detail) from exc
            if _is_ours(exc, _CHANGED):
                raise Failure("database_unavailable", f"{table} has just changed. It is looked at anew.") from exc
            raise


async def committed_segments(connection: Connection, upload_id: UUID) -> list[CommittedSegment]:
    """The committed segments of an upload, by number."""
    return [CommittedSegment.from_record(segment) for segment in await connection.fetch(_COMMITTED, upload_id)]


async def kept_of(connection: Connection, upload_id: UUID, number: int) -> Kept:
    """What the ledger row of a committed segment names, its header left out."""
    row = await connection.fetchrow(_KEPT, upload_id, number)
    return NOTHING_KEPT if row is None else Kept(rejects=row["rejects"], rejects_key=row["rejects_key"])


async def revise_segment(connection: Connection, upload_id: UUID, figures: SegmentFigures, kept: Kept | None) -> None:
    """Let the ledger row of a staged segment say what has become of its rows, in the transaction that moves them.

    :param kept: `None` where no rejections have come to those that it names.
    :raises ValueError: there is no such segment: a bug.
    """
    revised = await connection.fetchval(
        _REVISE,
        upload_id,
        figures.number,
        figures.rows_inserted,
        figures.rows_updated,
        figures.rows_skipped,
        as_jsonb(figures.rejected),
        None if kept is None else kept.rejects,
        None if kept is None else kept.rejects_key,
        as_jsonb(figures.first_rejects) if figures.first_rejects else None,
        figures.rows_read,
        kept is not None,
    )
    if revised is None:
        msg = f"segment {figures.number} of {upload_id} with {figures.rows_read} rows is not in the ledger"
        raise ValueError(msg)


def _is_ours(exc: asyncpg.PostgresError, sqlstate: str) -> bool:
    """Whether a function of ours has raised this: a trigger of the table might choose the same SQLSTATE."""
    return exc.sqlstate == sqlstate and exc.schema_name == "stream_api"
