"""The end of an upload's row: expired, and at last forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from stream_api.ledger.pool import Pool, using
from stream_api.ledger.staging import drop_orphans
from stream_api.ledger.uploads import end_sessions

# Oldest first. A row that somebody holds (a retry, a webhook) is left for the next time.
_EXPIRE: Final = """
WITH old AS (
    SELECT id FROM stream_api.uploads
    WHERE state IN ('completed', 'failed', 'cancelled') AND ended_at < now() - $1::float8 * interval '1 second'
    ORDER BY ended_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE stream_api.uploads AS upload
SET state = 'expired', webhook_state = NULL, webhook_due = NULL, webhook_round = webhook_round + 1,
    updated_at = now(), revision = revision + 1
FROM old WHERE upload.id = old.id
"""
_EXPIRED: Final = """
SELECT id, created_at FROM stream_api.uploads WHERE state = 'expired' ORDER BY ended_at, id LIMIT $1 OFFSET $2
"""
_FORGET: Final = "DELETE FROM stream_api.uploads WHERE id = $1 AND state = 'expired' AND created_at = $2"
_EVERY_RUN: Final = 2**62


@dataclass(frozen=True, slots=True)
class Expired:
    """An upload whose data may be removed. `created_at` tells it from a later one of the same `Idempotency-Key`."""

    upload_id: UUID
    created_at: datetime


class Expiry:
    """Lets uploads expire that ended long ago; one that waits or runs never does, however old it is.

    Every method raises `Failure` `database_unavailable` (transient) or `database_refused`.

    :param pool: of `open_pool`; stays the caller's.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def expire(self, *, retention_seconds: float, limit: int, skip: int = 0) -> list[Expired]:
        """Let uploads expire that ended longer ago than that, and name those that are expired and not forgotten yet.

        :param limit: so many at most, of either. :param skip: so many of the oldest are not named.
        """
        async with using(self._pool) as connection:
            await connection.execute(_EXPIRE, retention_seconds, limit)
            return [Expired(row["id"], row["created_at"]) for row in await connection.fetch(_EXPIRED, limit, skip)]

    async def drop_staging(self) -> int:
        """Drop the staging tables of uploads that have ended, but for failed ones, or are forgotten; how many."""
        return await drop_orphans(self._pool)

    async def forget(self, expired: Expired) -> None:
        """Remove the row and its segments, once everything else of the upload is gone.

        With an `Idempotency-Key` the id can come back, and runs begin anew: no session of an earlier one is left then.
        """
        async with using(self._pool) as connection:
            await end_sessions(connection, expired.upload_id, _EVERY_RUN)
            await connection.execute(_FORGET, expired.upload_id, expired.created_at)
