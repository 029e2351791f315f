"""The life of an upload: taken, completed, failed, cancelled, reopened; each a compare-and-set update of its row.

One statement each, because a worker can freeze between any two: a transaction that is open across a round trip
would hold its locks until somebody ends it.
"""

# ruff: noqa: S608 (statements are put together from constants of this module only)
from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import asyncpg

from stream_api.errors import Failure, RunLost
from stream_api.ledger.completing import ENDING, complete
from stream_api.ledger.jsonb import as_jsonb
from stream_api.ledger.pool import Connection, Pool, lane_prefix, using
from stream_api.ledger.reopening import reopen
from stream_api.ledger.rows import ENDED, GET, Intake, Known, UploadRow, recounted, updating
from stream_api.ledger.segments import CommittedSegment, committed_segments
from stream_api.ledger.staging import drop_quietly
from stream_api.options import Mode

#: How long `take` and `cancel` go round before they give up for now. Longer than the 10 s after which the server itself
#: ends a session of ours that was frozen inside a transaction.
_SEIZE_SECONDS: Final = 30.0

#: How long segments in flight may hold up a cancelling before their sessions are ended. A segment takes some 50 ms.
_CUT_OFF_SECONDS: Final = 0.5
# What is left of an earlier upload of the same Idempotency-Key, which has expired, is not this upload's.
_DROP_EXPIRED: Final = "DELETE FROM stream_api.uploads WHERE id = $1 AND state = 'expired' AND created_at <> $2"
_CREATE: Final = """
INSERT INTO stream_api.uploads
       (id, dataset, target_table, state, size_bytes, segment_bytes, callback_url, created_at, decoded_bytes)
VALUES ($1, $2, $3, 'uploaded', $4, $5, $6, $7, CASE WHEN NOT $8 THEN $4::bigint END)
ON CONFLICT (id) DO NOTHING
"""
_OPEN: Final = """
SELECT id FROM stream_api.uploads WHERE state IN ('uploaded', 'processing') ORDER BY updated_at LIMIT $1
"""
_STATES: Final = "SELECT id, state, created_at FROM stream_api.uploads WHERE id = ANY($1::uuid[])"
_LOOK: Final = "SELECT state, run, created_at FROM stream_api.uploads WHERE id = $1"
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
SET run = run + 1, state = 'processing', started_at = coalesce(started_at, now()), updated_at = now(),
    revision = revision + 1
WHERE id = $1 AND run = $2 AND state IN ('uploaded', 'processing')
RETURNING run, plan::text, amendments::text
"""
# Where no table has the name of the target at present, nothing is known: it may come back under it. A staging table is
# the service's own, and does not.
_DROP_STALE: Final = """
DELETE FROM stream_api.segments AS segment
USING stream_api.uploads AS upload
WHERE upload.id = $1 AND upload.run = $2 AND upload.state = 'processing' AND segment.upload_id = upload.id
  AND CASE WHEN upload.staging_table IS NULL THEN segment.table_oid <> to_regclass(upload.target_table)::oid
           ELSE segment.table_oid IS DISTINCT FROM to_regclass(upload.staging_table)::oid END
"""
_SET_PLAN: Final = """
UPDATE stream_api.uploads AS upload
SET (plan, target_table, mode, dry_run, staging_table) =
    (SELECT CASE WHEN bound THEN coalesce(upload.plan, $3::json) ELSE $3::json END,
            CASE WHEN bound THEN upload.target_table ELSE $4 END, CASE WHEN bound THEN upload.mode ELSE $5 END,
            CASE WHEN bound THEN upload.dry_run ELSE $6 END, CASE WHEN bound THEN upload.staging_table ELSE $7 END
     FROM (SELECT EXISTS (SELECT FROM stream_api.segments WHERE upload_id = upload.id AND table_oid IS NOT NULL)
                  AS bound) AS segments),
    updated_at = now()
WHERE id = $1 AND run = $2 AND state = 'processing'
RETURNING plan::text
"""
_FAIL: Final = updating(f"""
UPDATE stream_api.uploads SET state = 'failed', error = $3::jsonb, {ENDING}
WHERE id = $1 AND run = $2 AND state = 'processing'
""")
# The run is raised too: what is told of a run, by webhook, is told of it once.
_CANCEL: Final = updating(f"""
UPDATE stream_api.uploads SET state = 'cancelled', run = run + 1, error = NULL, {ENDING}
WHERE id = $1 AND run = $2 AND state IN ('uploaded', 'processing', 'failed')
""")


@dataclass(frozen=True, slots=True)
class Taken:
    """The load is this worker's, until another takes it.

    :param run: what the fence compares.
    :param plan: the plan as stored, JSON; `None` when this is the first run that got so far.
    :param segments: those that are loaded, by number.
    :param amendments: what retries have said anew, JSON as it was stored.
    """

    run: int
    plan: bytes | None
    segments: list[CommittedSegment]
    amendments: str | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """There is nothing to take: the upload is in an end state."""

    row: UploadRow


class Ledger:
    """What PostgreSQL knows about uploads.

    Every method raises `Failure` `database_unavailable` (transient) or `database_refused` beside what it names.

    :param pool: of `open_pool`; stays the caller's.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def take(self, intake: Intake, *, only_run: int | None = None) -> Taken | Ended:
        """Take the load of an upload: end the sessions of its earlier runs, then raise its run.

        Ending the sessions is what frees the row and the segments that a frozen worker holds. When workers take at
        once, each gets a run of its own, and only the last one's passes the fence.

        :param intake: what the row is made of when the upload has none yet.
        :param only_run: take it only if this is still its run: a worker that begins anew after an interruption does
            not take it away from another.
        :raises RunLost: with `only_run`, when another run was taken.
        :raises Failure: `database_unavailable` also when somebody else holds the row for longer than 30 s.
        """
        upload_id = intake.upload_id
        give_up_at = time.monotonic() + _SEIZE_SECONDS
        async with using(self._pool) as connection:
            if only_run is None:
                await _create(connection, intake)
            while True:
                seen = await _look(connection, upload_id)
                if seen["created_at"] != intake.created_at:
                    # Frozen for as long as it takes an upload to expire, and its Idempotency-Key to come back.
                    raise RunLost(f"the upload {upload_id} is another one now")
                if seen["state"] in ENDED:
                    row = await connection.fetchrow(GET, upload_id)
                    if row is not None and row["state"] in ENDED:
                        # A frozen worker's may still hold a slot of the dataset.
                        await end_sessions(connection, upload_id, row["run"])
                        return Ended(UploadRow.from_record(row))
                    continue  # retried in this very moment
                if only_run is not None and seen["run"] != only_run:
                    raise RunLost(f"run {only_run} of upload {upload_id} is over")
                await end_sessions(connection, upload_id, seen["run"])
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
            segments = await committed_segments(connection, upload_id)
        plan: str | None = taken["plan"]
        return Taken(
            run,
            None if plan is None else plan.encode(),
            segments,
            taken["amendments"],
        )

    async def cancel(self, intake: Intake) -> UploadRow:
        """Cancel an upload that waits, runs or has failed. What is committed stays; nothing is added once it returns.

        Segments in flight may end; after `_CUT_OFF_SECONDS` they are cut off. One that is cancelled already is given
        back as it is.

        :param intake: what the row is made of when the upload has none yet.
        :raises Failure: `upload_completed`; `upload_gone` when it is expired; `database_unavailable` also when somebody
            else holds the row for longer than 30 s.
        """
        upload_id = intake.upload_id
        give_up_at = time.monotonic() + _SEIZE_SECONDS
        async with using(self._pool) as connection:
            await _create(connection, intake)
            while True:
                seen = await _look(connection, upload_id)
                try:
                    row = await connection.fetchrow(_CANCEL, upload_id, seen["run"], timeout=_CUT_OFF_SECONDS)
                except (asyncpg.LockNotAvailableError, TimeoutError):
                    # Each lane may hold the row for a moment only, and yet they never let go of it: whoever wants to
                    # share it passes by those who want it for themselves.
                    if time.monotonic() > give_up_at:
                        raise
                    await end_sessions(connection, upload_id, seen["run"])
                    continue
                if row is not None:
                    await end_sessions(connection, upload_id, row["run"])
                    if row["staging_table"] is not None:
                        await drop_quietly(connection, row["staging_table"])
                    return await recounted(connection, row)
                if seen["state"] in ENDED:
                    row = await connection.fetchrow(GET, upload_id)
                if row is None or row["state"] not in ENDED:
                    continue  # taken or retried in this very moment
                if row["state"] == "completed":
                    detail = "The upload is completed: its rows are in the table, and there is nothing to cancel."
                    raise Failure("upload_completed", detail, uploadStatus="completed")
                if row["state"] == "expired":
                    raise Failure("upload_gone", "The upload is expired: its data is no longer stored.")
                return UploadRow.from_record(row)

    async def set_plan(
        self,
        upload_id: UUID,
        run: int,
        plan: bytes,
        table: str,
        *,
        mode: Mode = "append",
        dry_run: bool = False,
        staging: str | None = None,
    ) -> bytes:
        """Store the plan of a load, unless it has one by which segments were loaded.

        :param plan: JSON.
        :param table: that of the plan, as SQL names it; the upload's from now on, as are `mode` and `dry_run`.
        :param staging: the table that the segments go into first, if any.
        :returns: the plan that stands, byte for byte as it was stored.
        :raises RunLost: the run is over.
        """
        async with using(self._pool) as connection:
            stored: str | None = await connection.fetchval(
                _SET_PLAN, upload_id, run, plan.decode(), table, mode, dry_run, staging
            )
        if stored is None:
            raise RunLost(f"run {run} of upload {upload_id} is over")
        return stored.encode()

    async def get(self, upload_id: UUID) -> UploadRow | None:
        """The upload's row and totals; `None` before it was first taken."""
        async with using(self._pool) as connection:
            row = await connection.fetchrow(GET, upload_id)
        return None if row is None else UploadRow.from_record(row)

    async def has_ended(self, upload_id: UUID) -> bool:
        """Whether the upload is in an end state; `False` also before it was first taken."""
        async with using(self._pool) as connection:
            seen = await connection.fetchrow(_LOOK, upload_id)
        return seen is not None and seen["state"] in ENDED

    async def states(self, upload_ids: Collection[UUID]) -> dict[UUID, Known]:
        """The states of those of the uploads that have a row."""
        async with using(self._pool) as connection:
            rows = await connection.fetch(_STATES, list(upload_ids))
        return {row["id"]: Known(row["state"], row["created_at"]) for row in rows}

    async def open_uploads(self, limit: int) -> list[UUID]:
        """Uploads whose row is in no end state, those first in which nothing has changed for longest."""
        async with using(self._pool) as connection:
            return [row["id"] for row in await connection.fetch(_OPEN, limit)]

    async def is_expired(self, upload_id: UUID) -> bool:
        """Whether the upload has expired, and its row is still there: what is left of it is being removed."""
        async with using(self._pool) as connection:
            seen = await connection.fetchrow(_LOOK, upload_id)
        return seen is not None and seen["state"] == "expired"

    async def segments(self, upload_id: UUID) -> list[CommittedSegment]:
        """The committed segments, by number: what settles a lost answer to COMMIT."""
        async with using(self._pool) as connection:
            return await committed_segments(connection, upload_id)

    async def complete(self, upload_id: UUID, run: int, *, decoded_bytes: int | None = None) -> UploadRow:
        """Complete the upload, if its segments cover every byte from 0 to its decoded size. Durable once it returns.

        :param decoded_bytes: of a compressed file, by whoever has read it to its end; of others it is known already.
        :raises RunLost: the run is over.
        :raises Failure: `ledger_incomplete`, with `coveredBytes` up to the first gap or overlap.
        """
        async with using(self._pool) as connection:
            return await complete(connection, upload_id, run, decoded_bytes)

    async def fail(
        self, upload_id: UUID, run: int, *, code: str, message: str, extra: Mapping[str, Any] | None = None
    ) -> UploadRow:
        """Record that the load has failed. Its segments, and so its counts, stay for a retry.

        :param extra: further members of the error, JSON-ready.
        :raises RunLost: the run is over.
        """
        error = as_jsonb({"code": code, "message": message, **(extra or {})})
        async with using(self._pool) as connection:
            row = await connection.fetchrow(_FAIL, upload_id, run, error)
            if row is None:
                raise RunLost(f"run {run} of upload {upload_id} is over")
            return await recounted(connection, row)

    async def reopen(
        self, upload_id: UUID, *, run: int | None = None, amendments: str | None = None, of_plan: Sequence[str] = ()
    ) -> UploadRow:
        """See `reopening.reopen`."""
        async with using(self._pool) as connection:
            return await reopen(connection, upload_id, run=run, amendments=amendments, of_plan=of_plan)

    async def check(self) -> None:
        """Ask for the ledger's tables, for `/readyz`."""
        async with using(self._pool) as connection:
            await connection.fetchval("SELECT EXISTS (SELECT FROM stream_api.uploads)")


async def end_sessions(connection: Connection, upload_id: UUID, last_run: int) -> None:
    """End the sessions of lanes of an upload, of runs up to this one, frozen or not."""
    await connection.fetchval(_TERMINATE, lane_prefix(upload_id), last_run)


async def _create(connection: Connection, intake: Intake) -> None:
    await connection.execute(_DROP_EXPIRED, intake.upload_id, intake.created_at)
    await connection.execute(
        _CREATE,
        intake.upload_id,
        intake.dataset,
        intake.table,
        intake.size_bytes,
        intake.segment_bytes,
        intake.callback_url,
        intake.created_at,
        intake.compressed,
    )


async def _look(connection: Connection, upload_id: UUID) -> asyncpg.Record:
    seen = await connection.fetchrow(_LOOK, upload_id)
    if seen is None:
        raise Failure("upload_not_found", f"The row of upload {upload_id} was removed in this very moment")
    return seen
