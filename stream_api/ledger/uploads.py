"""The rows of uploads: taken, completed, failed, reopened; each a compare-and-set update, each one statement.

One statement each, because a worker can freeze between any two: a transaction that is open across a round trip
would hold its locks until somebody ends it.
"""

# ruff: noqa: S608 (statements are put together from constants of this module only)
from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, get_args
from uuid import UUID

import asyncpg
import msgspec

from stream_api.errors import Failure, RunLost
from stream_api.ledger.errors import translated
from stream_api.ledger.pool import Connection, Pool, lane_prefix
from stream_api.ledger.segments import CommittedSegment

State = Literal["uploaded", "processing", "completed", "failed", "cancelled", "expired"]

#: States that nothing but a retry (of `failed`) leads out of.
ENDED: Final = frozenset({"completed", "failed", "cancelled", "expired"})

#: How long `take` goes round before it gives up for now. Longer than the 10 s after which the server itself ends a
#: session of ours that was frozen inside a transaction.
_TAKE_SECONDS: Final = 30.0

_TOTALS: Final = """
CROSS JOIN LATERAL (
    SELECT count(*) AS segments, coalesce(sum(end_byte - start_byte), 0)::bigint AS committed_bytes,
           coalesce(sum(rows_read), 0)::bigint AS rows_read,
           coalesce(sum(rows_inserted), 0)::bigint AS rows_inserted,
           coalesce(sum(rows_updated), 0)::bigint AS rows_updated,
           coalesce(sum(rows_skipped), 0)::bigint AS rows_skipped
    FROM stream_api.segments WHERE upload_id = upload.id AND table_oid IS NOT NULL
) AS total
CROSS JOIN LATERAL (
    SELECT coalesce(jsonb_object_agg(code, rows), '{}') AS rejected
    FROM (SELECT code, sum(rows::bigint) AS rows
          FROM stream_api.segments, jsonb_each_text(rejected) AS each (code, rows)
          WHERE upload_id = upload.id AND table_oid IS NOT NULL
          GROUP BY code) AS merged
) AS by_code
"""
_COLUMNS: Final = (
    "upload.id, upload.dataset, upload.target_table, upload.state, upload.run, upload.size_bytes, upload.segment_bytes,"
    " upload.error, upload.created_at, upload.started_at, upload.ended_at, upload.updated_at, total.*, by_code.*"
)
_GET: Final = f"SELECT {_COLUMNS} FROM stream_api.uploads AS upload {_TOTALS} WHERE upload.id = $1"


def _updating(update: str) -> str:
    """An UPDATE that gives back the whole `UploadRow`."""
    return f"WITH upload AS ({update} RETURNING *) SELECT {_COLUMNS} FROM upload {_TOTALS}"


_CREATE: Final = """
INSERT INTO stream_api.uploads (id, dataset, target_table, state, size_bytes, segment_bytes, created_at)
VALUES ($1, $2, $3, 'uploaded', $4, $5, $6)
ON CONFLICT (id) DO NOTHING
"""
_LOOK: Final = "SELECT state, run FROM stream_api.uploads WHERE id = $1"
# Only sessions of our own role (another's are not ours to end), only with exactly such a name, only of earlier runs.
# CASE, because the order in which conditions are evaluated is not fixed, and a cast of something else would fail.
_TERMINATE: Final = """
SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
FROM pg_stat_activity
WHERE usename = session_user AND datname = current_database() AND pid <> pg_backend_pid()
  AND starts_with(application_name, $1)
  AND CASE WHEN substr(application_name, length($1) + 1) ~ '^[0-9]{1,15}$'
           THEN substr(application_name, length($1) + 1)::bigint <= $2 ELSE false END
"""
_TAKE: Final = """
UPDATE stream_api.uploads
SET run = run + 1, state = 'processing', started_at = coalesce(started_at, now()), updated_at = now()
WHERE id = $1 AND run = $2 AND state IN ('uploaded', 'processing')
RETURNING run, plan::text
"""
# Where no table has the name at present, nothing is known: it may come back under it.
_DROP_STALE: Final = """
DELETE FROM stream_api.segments AS segment
USING stream_api.uploads AS upload
WHERE upload.id = $1 AND upload.run = $2 AND upload.state = 'processing' AND segment.upload_id = upload.id
  AND segment.table_oid <> to_regclass(upload.target_table)::oid
"""
_SEGMENTS: Final = """
SELECT * FROM stream_api.segments WHERE upload_id = $1 AND table_oid IS NOT NULL ORDER BY number
"""
_SET_PLAN: Final = """
UPDATE stream_api.uploads AS upload
SET plan = CASE WHEN EXISTS (SELECT FROM stream_api.segments WHERE upload_id = upload.id AND table_oid IS NOT NULL)
                THEN coalesce(plan, $3::json) ELSE $3::json END,
    updated_at = now()
WHERE id = $1 AND run = $2 AND state = 'processing'
RETURNING plan::text
"""
# `expected` is where a segment has to begin: the end of the one before it, 0 for the first. Only segments count that
# are in the table which has the name now.
_COVERAGE: Final = """
SELECT coalesce(max(end_byte), 0) AS covered, min(expected) FILTER (WHERE start_byte <> expected) AS hole
FROM (SELECT segment.start_byte, segment.end_byte,
             lag(segment.end_byte, 1, 0::bigint) OVER (ORDER BY segment.number) AS expected
      FROM stream_api.segments AS segment
      WHERE segment.upload_id = upload.id AND segment.table_oid = to_regclass(upload.target_table)::oid) AS ordered
"""
# The statement may have to wait for the row and then still sees the segments as they were when it began. It cannot be
# misled by that: segments are only added, but for those that a taking removes, and that raises the run.
_COMPLETE: Final = _updating(f"""
UPDATE stream_api.uploads AS upload
SET state = 'completed', error = NULL, ended_at = now(), updated_at = now()
WHERE id = $1 AND run = $2 AND state = 'processing'
  AND (SELECT hole IS NULL AND covered = upload.size_bytes FROM ({_COVERAGE}) AS coverage)
""")
_WHY_INCOMPLETE: Final = f"""
SELECT coverage.covered, coverage.hole, upload.size_bytes
FROM stream_api.uploads AS upload CROSS JOIN LATERAL ({_COVERAGE}) AS coverage
WHERE upload.id = $1 AND upload.run = $2 AND upload.state = 'processing'
"""
_FAIL: Final = _updating("""
UPDATE stream_api.uploads SET state = 'failed', error = $3::jsonb, ended_at = now(), updated_at = now()
WHERE id = $1 AND run = $2 AND state = 'processing'
""")
_REOPEN: Final = _updating("""
UPDATE stream_api.uploads SET state = 'uploaded', error = NULL, ended_at = NULL, updated_at = now()
WHERE id = $1 AND state = 'failed'
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRow:
    """An upload as PostgreSQL knows it, with totals summed from its segments.

    :param table: the target table, as the dataset names it.
    :param run: of the last taking; 0 before the first.
    :param error: `{"code": …, "message": …, …}` of the last failure, JSON-ready; `None` unless failed.
    :param started_at: of the first run.
    :param ended_at: of the last end state; `None` while there is none.
    :param segments: committed ones.
    :param committed_bytes: of the decoded file.
    :param rejected: rows that were not loaded, by code.
    """

    id: UUID
    dataset: str
    table: str
    state: State
    run: int
    size_bytes: int
    segment_bytes: int
    error: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    updated_at: datetime
    segments: int = 0
    committed_bytes: int = 0
    rows_read: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_skipped: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the upload is in an end state."""
        return self.state in ENDED

    @property
    def rows_processed(self) -> int:
        """Rows that the table has taken: inserted, updated or skipped."""
        return self.rows_inserted + self.rows_updated + self.rows_skipped

    @property
    def rows_failed(self) -> int:
        """Rows that were not loaded."""
        return sum(self.rejected.values())

    @property
    def progress(self) -> float:
        """From 0 to 1: the share of the bytes that is in committed segments; 1 only when completed."""
        if self.state == "completed":
            return 1.0
        if self.size_bytes == 0:
            return 0.0
        return min(self.committed_bytes / self.size_bytes, 0.9999)

    @classmethod
    def from_record(cls, record: asyncpg.Record) -> UploadRow:
        """From a row of the statements of this module."""
        values: dict[str, Any] = dict(record.items())
        assert values["state"] in get_args(State)  # noqa: S101 (a CHECK of the table)
        error = values.pop("error")
        return cls(
            table=values.pop("target_table"),
            error=None if error is None else msgspec.json.decode(error),
            rejected=msgspec.json.decode(values.pop("rejected"), type=dict[str, int]),
            **values,
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """The load is this worker's, until another takes it.

    :param run: what the fence compares.
    :param plan: the plan as stored, JSON; `None` when this is the first run that got so far.
    :param segments: those that are loaded, by number.
    """

    run: int
    plan: bytes | None
    segments: list[CommittedSegment]


@dataclass(frozen=True, slots=True)
class Ended:
    """There is nothing to take: the upload is in an end state."""

    row: UploadRow


def _storable(value: Any) -> Any:
    """A JSON-ready value without what jsonb refuses (NUL) or UTF-8 cannot say: messages quote what was in the file."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return value


class Ledger:
    """What PostgreSQL knows about uploads.

    Every method raises `Failure` `database_unavailable` (transient) or `database_refused` beside what it names.

    :param pool: of `open_pool`; stays the caller's.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def take(
        self, upload_id: UUID, *, dataset: str, table: str, size_bytes: int, segment_bytes: int, created_at: datetime
    ) -> Taken | Ended:
        """Take the load of an upload: end the sessions of its earlier runs, then raise its run.

        Ending the sessions is what frees the row and the segments that a frozen worker holds. When workers take at
        once, each gets a run of its own, and only the last one's passes the fence.

        :param table: the target table; it and the other values are written when the upload has no row yet, and
            otherwise the row's stand.
        :raises Failure: `database_unavailable` also when somebody else holds the row for longer than 30 s.
        """
        give_up_at = time.monotonic() + _TAKE_SECONDS
        async with self._connection() as connection:
            await connection.execute(_CREATE, upload_id, dataset, table, size_bytes, segment_bytes, created_at)
            while True:
                seen = await connection.fetchrow(_LOOK, upload_id)
                if seen is None:
                    raise Failure("upload_not_found", f"The row of upload {upload_id} was removed while it was taken")
                if seen["state"] in ENDED:
                    row = await connection.fetchrow(_GET, upload_id)
                    if row is not None and row["state"] in ENDED:
                        return Ended(UploadRow.from_record(row))
                    continue  # retried in this very moment
                await connection.fetchval(_TERMINATE, lane_prefix(upload_id), seen["run"])
                try:
                    taken = await connection.fetchrow(_TAKE, upload_id, seen["run"])
                except asyncpg.LockNotAvailableError:
                    # A lane that connected after the terminating, or somebody of another role: look again.
                    if time.monotonic() > give_up_at:
                        raise
                    continue
                if taken is not None:
                    break
                # Another worker took it, or it ended: look again. Each round of ours means that somebody got on.
            run: int = taken["run"]
            await connection.execute(_DROP_STALE, upload_id, run)
            segments = await connection.fetch(_SEGMENTS, upload_id)
        plan: str | None = taken["plan"]
        return Taken(
            run,
            None if plan is None else plan.encode(),
            [CommittedSegment.from_record(segment) for segment in segments],
        )

    async def set_plan(self, upload_id: UUID, run: int, plan: bytes) -> bytes:
        """Store the plan of a load, unless it has one by which segments were loaded.

        :param plan: JSON.
        :returns: the plan that stands, byte for byte as it was stored.
        :raises RunLost: the run is over.
        """
        async with self._connection() as connection:
            stored: str | None = await connection.fetchval(_SET_PLAN, upload_id, run, plan.decode())
        if stored is None:
            raise RunLost(f"run {run} of upload {upload_id} is over")
        return stored.encode()

    async def get(self, upload_id: UUID) -> UploadRow | None:
        """The upload's row and totals; `None` before it was first taken."""
        async with self._connection() as connection:
            row = await connection.fetchrow(_GET, upload_id)
        return None if row is None else UploadRow.from_record(row)

    async def has_ended(self, upload_id: UUID) -> bool:
        """Whether the upload is in an end state; `False` also before it was first taken."""
        async with self._connection() as connection:
            seen = await connection.fetchrow(_LOOK, upload_id)
        return seen is not None and seen["state"] in ENDED

    async def segments(self, upload_id: UUID) -> list[CommittedSegment]:
        """The committed segments, by number: what settles a lost answer to COMMIT."""
        async with self._connection() as connection:
            return [CommittedSegment.from_record(segment) for segment in await connection.fetch(_SEGMENTS, upload_id)]

    async def complete(self, upload_id: UUID, run: int) -> UploadRow:
        """Complete the upload, if its segments cover every byte from 0 to its size. Durable once it returns.

        :raises RunLost: the run is over.
        :raises Failure: `ledger_incomplete`, with `coveredBytes` up to the first gap or overlap.
        """
        async with self._connection() as connection:
            while True:
                row = await connection.fetchrow(_COMPLETE, upload_id, run)
                if row is not None:
                    return UploadRow.from_record(row)
                why = await connection.fetchrow(_WHY_INCOMPLETE, upload_id, run)
                if why is None:
                    raise RunLost(f"run {run} of upload {upload_id} is over")
                if why["hole"] is None and why["covered"] == why["size_bytes"]:
                    continue  # The last segment was committed while the statement waited for the row.
                covered = why["covered"] if why["hole"] is None else why["hole"]
                raise Failure(
                    "ledger_incomplete",
                    f"The ledger covers {covered} of {why['size_bytes']} bytes without gap or overlap",
                    coveredBytes=covered,
                    sizeBytes=why["size_bytes"],
                )

    async def fail(
        self, upload_id: UUID, run: int, *, code: str, message: str, extra: Mapping[str, Any] | None = None
    ) -> UploadRow:
        """Record that the load has failed. Its segments, and so its counts, stay for a retry.

        :param extra: further members of the error, JSON-ready.
        :raises RunLost: the run is over.
        """
        error = msgspec.json.encode(_storable({"code": code, "message": message, **(extra or {})})).decode()
        async with self._connection() as connection:
            row = await connection.fetchrow(_FAIL, upload_id, run, error)
        if row is None:
            raise RunLost(f"run {run} of upload {upload_id} is over")
        return UploadRow.from_record(row)

    async def reopen(self, upload_id: UUID) -> UploadRow:
        """Let a failed upload be loaded again: failed → uploaded. Of several calls at once one succeeds.

        :raises Failure: `upload_not_found`; `upload_gone` when cancelled or expired; `upload_not_failed` otherwise.
        """
        async with self._connection() as connection:
            row = await connection.fetchrow(_REOPEN, upload_id)
            if row is not None:
                return UploadRow.from_record(row)
            state: str | None = await connection.fetchval(
                "SELECT state FROM stream_api.uploads WHERE id = $1", upload_id
            )
        if state is None:
            raise Failure("upload_not_found", f"No worker has begun to load the upload {upload_id}")
        if state in {"cancelled", "expired"}:
            raise Failure("upload_gone", f"The upload is {state}: its data is no longer stored", uploadStatus=state)
        raise Failure(
            "upload_not_failed", f"The upload is {state}, and only a failed one can be retried", uploadStatus=state
        )

    async def check(self) -> None:
        """Ask for the ledger's tables, for `/readyz`."""
        async with self._connection() as connection:
            await connection.fetchval("SELECT EXISTS (SELECT FROM stream_api.uploads)")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        with translated():
            async with self._pool.acquire(timeout=30.0) as connection:
                with translated(connection):
                    yield connection
