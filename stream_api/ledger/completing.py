"""The completion of an upload: once its segments cover the whole file, and in the transaction that the caller has."""

# ruff: noqa: S608 (statements are put together from constants of this package only)
from __future__ import annotations

from typing import Final
from uuid import UUID

from stream_api.errors import Failure, RunLost
from stream_api.ledger.pool import Connection
from stream_api.ledger.rows import UploadRow, updating

# An end state and what is to be told of it are one update: the row is the outbox of the webhook.
ENDING: Final = """
    ended_at = now(), updated_at = now(), revision = revision + 1,
    webhook_state = CASE WHEN callback_url IS NOT NULL THEN 'pending' END,
    webhook_due = CASE WHEN callback_url IS NOT NULL THEN now() END,
    webhook_round = webhook_round + 1, webhook_attempts = 0, webhook_error = NULL, webhook_at = NULL
"""
# `expected` is where a segment has to begin: the end of the one before it, 0 for the first. Only segments count that
# are in the table which has the name now.
_COVERAGE: Final = """
SELECT coalesce(max(end_byte), 0) AS covered, min(expected) FILTER (WHERE start_byte <> expected) AS hole
FROM (SELECT segment.start_byte, segment.end_byte,
             lag(segment.end_byte, 1, 0::bigint) OVER (ORDER BY segment.number) AS expected
      FROM stream_api.segments AS segment
      WHERE segment.upload_id = upload.id
        AND segment.table_oid = to_regclass(coalesce(upload.staging_table, upload.target_table))::oid) AS ordered
"""
# The statement may have to wait for the row and then still sees the segments as they were when it began. It cannot be
# misled by that: segments are only added, but for those that a taking removes, and that raises the run.
_COMPLETE: Final = updating(f"""
UPDATE stream_api.uploads AS upload
SET state = 'completed', error = NULL, decoded_bytes = coalesce(decoded_bytes, $3), staging_table = NULL, {ENDING}
WHERE id = $1 AND run = $2 AND state = 'processing'
  AND (SELECT hole IS NULL AND covered = coalesce(upload.decoded_bytes, $3) FROM ({_COVERAGE}) AS coverage)
""")
_WHY_INCOMPLETE: Final = f"""
SELECT coverage.covered, coverage.hole, coalesce(upload.decoded_bytes, $3::bigint) AS size_bytes
FROM stream_api.uploads AS upload CROSS JOIN LATERAL ({_COVERAGE}) AS coverage
WHERE upload.id = $1 AND upload.run = $2 AND upload.state = 'processing'
"""


async def complete(connection: Connection, upload_id: UUID, run: int, decoded_bytes: int | None) -> UploadRow:
    """Complete the upload, if its segments cover every byte from 0 to its decoded size.

    :param decoded_bytes: of a compressed file, by whoever has read it to its end; of others it is known already.
    :raises RunLost: the run is over.
    :raises Failure: `ledger_incomplete`, with `coveredBytes` up to the first gap or overlap.
    """
    while True:
        row = await connection.fetchrow(_COMPLETE, upload_id, run, decoded_bytes)
        if row is not None:
            return UploadRow.from_record(row)
        why = await connection.fetchrow(_WHY_INCOMPLETE, upload_id, run, decoded_bytes)
        if why is None:
            raise RunLost(f"run {run} of upload {upload_id} is over")
        if why["hole"] is None and why["covered"] == why["size_bytes"]:
            continue  # The last segment was committed while the statement waited for the row.
        covered = why["covered"] if why["hole"] is None else why["hole"]
        raise Failure(
            "ledger_incomplete",
            f"The ledger covers {covered} of {why['size_bytes']} bytes without gap or overlap. Retry the load; "
            "if it fails again, report it.",
            coveredBytes=covered,
            sizeBytes=why["size_bytes"],
        )
