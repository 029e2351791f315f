"""The outbox of webhooks: each upload's row holds the delivery for its last end state.

An end state arms the outbox in the same update (`ledger.uploads`), so a webhook cannot be lost: whatever queue drives
the delivery, what is `pending` here and due is still to be sent. A delivery is named by upload and round; whoever acts
for an earlier round finds no row.
"""

# ruff: noqa: S608 (statements are put together from constants of this package only)
from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from stream_api.errors import Failure
from stream_api.ledger.pool import Pool, using
from stream_api.ledger.rows import ENDED, GET, UploadRow, updating

_PENDING: Final = "id = $1 AND webhook_round = $2 AND webhook_state = 'pending'"
# Counted before it is made: a worker that dies while it sends has used up a try, and the next one may be made once the
# lease, here the time until it is due again, is over.
_CLAIM: Final = updating(f"""
UPDATE stream_api.uploads
SET webhook_attempts = webhook_attempts + 1, webhook_due = now() + $3::float8 * interval '1 second'
WHERE {_PENDING} AND webhook_due <= now() AND webhook_attempts < $4
""")
_LOOK: Final = f"""
SELECT webhook_attempts, greatest(extract(epoch FROM webhook_due - now()), 0)::float8 AS seconds
FROM stream_api.uploads WHERE {_PENDING}
"""
_DELIVERED: Final = updating(f"""
UPDATE stream_api.uploads
SET webhook_state = 'delivered', webhook_error = NULL, webhook_due = NULL, webhook_at = now(), revision = revision + 1
WHERE {_PENDING}
""")
_POSTPONE: Final = updating(f"""
UPDATE stream_api.uploads
SET webhook_error = $3, webhook_due = now() + $4::float8 * interval '1 second', webhook_at = now(),
    revision = revision + 1
WHERE {_PENDING}
""")
_GIVE_UP: Final = updating(f"""
UPDATE stream_api.uploads
SET webhook_state = 'failed', webhook_error = $3, webhook_due = NULL, webhook_at = now(), revision = revision + 1
WHERE {_PENDING}
""")
_REARM: Final = updating("""
UPDATE stream_api.uploads
SET webhook_state = 'pending', webhook_round = webhook_round + 1, webhook_attempts = 0, webhook_error = NULL,
    webhook_due = now(), webhook_at = NULL, revision = revision + 1
WHERE id = $1 AND callback_url IS NOT NULL AND state IN ('completed', 'failed', 'cancelled')
""")
_OVERDUE: Final = """
SELECT id, webhook_round FROM stream_api.uploads
WHERE webhook_state = 'pending' AND webhook_due <= now() - $1::float8 * interval '1 second'
ORDER BY webhook_due LIMIT $2
"""

#: The error of a try whose outcome nobody knows.
INTERRUPTED: Final = "webhook_interrupted: the worker stopped or was lost while it sent; the webhook may have arrived"


@dataclass(frozen=True, slots=True)
class Delivery:
    """The name of one delivery."""

    upload_id: UUID
    round: int


@dataclass(frozen=True, slots=True)
class NotDue:
    """The delivery is pending, and not to be tried for so long: it was postponed, or somebody tries it now."""

    seconds: float


class Outbox:
    """The deliveries of webhooks, as PostgreSQL knows them.

    Every method raises `Failure` `database_unavailable` (transient) or `database_refused` beside what it names.

    :param pool: of `open_pool`; stays the caller's.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def claim(self, delivery: Delivery, *, lease_seconds: float, max_attempts: int) -> UploadRow | NotDue | None:
        """Count a try and make it ours for so long.

        :returns: the row, with the try counted; or, in the state `failed`, when the tries are used up and the last of
            them was cut off, as is then recorded; `NotDue`; `None` when there is nothing to deliver any more.
        """
        async with using(self._pool) as connection:
            row = await connection.fetchrow(_CLAIM, delivery.upload_id, delivery.round, lease_seconds, max_attempts)
            if row is not None:
                return UploadRow.from_record(row)
            seen = await connection.fetchrow(_LOOK, delivery.upload_id, delivery.round)
            if seen is None:
                return None
            if seen["seconds"] > 0 or seen["webhook_attempts"] < max_attempts:
                return NotDue(seen["seconds"])
        # The last try was begun by somebody who died under it.
        return await self.give_up(delivery, error=INTERRUPTED)

    async def delivered(self, delivery: Delivery) -> UploadRow | None:
        """Record that the receiver has taken it. `None` when another round has begun."""
        return await self._update(_DELIVERED, delivery)

    async def postpone(self, delivery: Delivery, *, error: str, seconds: float) -> UploadRow | None:
        """Record a try that failed, and when the next is due. `None` when another round has begun."""
        return await self._update(_POSTPONE, delivery, error, seconds)

    async def give_up(self, delivery: Delivery, *, error: str) -> UploadRow | None:
        """Record that there will be no further try. `None` when another round has begun."""
        return await self._update(_GIVE_UP, delivery, error)

    async def rearm(self, upload_id: UUID) -> UploadRow:
        """Begin the delivery for the last end state anew.

        :raises Failure: `upload_not_found`; `upload_not_ended`; `webhook_missing` when no URL was given with it;
            `upload_gone` when it has expired.
        """
        async with using(self._pool) as connection:
            row = await connection.fetchrow(_REARM, upload_id)
            if row is not None:
                return UploadRow.from_record(row)
            row = await connection.fetchrow(GET, upload_id)
        if row is None:
            raise Failure("upload_not_found", "There is no upload with this id, or no worker has begun to load it.")
        if row["state"] == "expired":
            raise Failure("upload_gone", "The upload is expired: its data is no longer stored.", uploadStatus="expired")
        if row["state"] not in ENDED:
            detail = f"The upload is {row['state']}: its webhook is sent when it ends."
            raise Failure("upload_not_ended", detail, uploadStatus=row["state"])
        raise Failure("webhook_missing", "The upload was sent without a callbackUrl: there is no webhook to send.")

    async def overdue(self, *, seconds: float, limit: int) -> list[Delivery]:
        """Deliveries that have been due for so long: whatever was to drive them may have been lost."""
        async with using(self._pool) as connection:
            rows = await connection.fetch(_OVERDUE, seconds, limit)
        return [Delivery(row["id"], row["webhook_round"]) for row in rows]

    async def _update(self, statement: str, delivery: Delivery, *values: object) -> UploadRow | None:
        async with using(self._pool) as connection:
            row = await connection.fetchrow(statement, delivery.upload_id, delivery.round, *values)
        return None if row is None else UploadRow.from_record(row)
