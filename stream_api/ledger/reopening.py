"""The reopening of a failed upload: it is loaded again, by another plan too where none of its rows is in the table."""

# ruff: noqa: S608 (statements are put together from constants of this package only)
from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from stream_api.errors import Failure, RunLost
from stream_api.ledger.pool import Connection
from stream_api.ledger.rows import UploadRow, recounted, updating

# Segments that a taking would remove, since their table has gone, bind nobody; nor do those in a staging table: none
# of their rows is in the target.
_IS_BOUND: Final = """
upload.staging_table IS NULL
AND EXISTS (SELECT FROM stream_api.segments AS segment
            WHERE segment.upload_id = upload.id AND segment.table_oid IS NOT NULL
              AND (segment.table_oid <> to_regclass(upload.target_table)::oid) IS NOT TRUE)
"""
# A delivery under way for the failure is given up: the next end state has one of its own. With another plan, staging
# begins anew, which the worker who finds no segments sees to.
_REOPEN: Final = updating(
    f"""
UPDATE stream_api.uploads AS upload
SET state = 'uploaded', amendments = coalesce($3::json, amendments), error = NULL, ended_at = NULL,
    updated_at = now(), revision = revision + 1,
    webhook_state = NULL, webhook_due = NULL, webhook_round = webhook_round + 1, webhook_attempts = 0,
    webhook_error = NULL, webhook_at = NULL
WHERE id = $1 AND state = 'failed' AND run = coalesce($2, run) AND NOT ($4::boolean AND {_IS_BOUND})
""",
    also="""
DELETE FROM stream_api.segments AS segment USING upload
WHERE segment.upload_id = upload.id AND upload.staging_table IS NOT NULL AND $4::boolean
""",
)
_WHY_NOT_REOPENED: Final = f"SELECT state, run, {_IS_BOUND} AS bound FROM stream_api.uploads AS upload WHERE id = $1"


async def reopen(
    connection: Connection,
    upload_id: UUID,
    *,
    run: int | None = None,
    amendments: str | None = None,
    of_plan: Sequence[str] = (),
) -> UploadRow:
    """Let a failed upload be loaded again: failed → uploaded. Of several calls at once one succeeds.

    :param run: only if this is still its run: the amendments take those of before for granted.
    :param amendments: what is said anew, JSON, in place of all that was said anew before.
    :param of_plan: names of the fields that are said anew and are part of the plan.
    :raises RunLost: it has failed, of another run.
    :raises Failure: `upload_not_found`; `upload_gone` when cancelled or expired; `plan_fixed`, with `fields`, when
        segments are committed; `upload_not_failed` otherwise.
    """
    while True:
        row = await connection.fetchrow(_REOPEN, upload_id, run, amendments, bool(of_plan))
        if row is not None:
            return await recounted(connection, row)
        seen = await connection.fetchrow(_WHY_NOT_REOPENED, upload_id)
        if seen is None:
            raise Failure("upload_not_found", f"No worker has begun to load the upload {upload_id}")
        state: str = seen["state"]
        if state != "failed":
            break
        if run not in (None, seen["run"]):
            raise RunLost(f"run {run} of upload {upload_id} is over")
        if of_plan and seen["bound"]:
            raise _plan_fixed(of_plan)
        # It has failed, or its table has gone, in this very moment.
    if state in {"cancelled", "expired"}:
        raise Failure("upload_gone", f"The upload is {state}: its data is no longer stored", uploadStatus=state)
    raise Failure(
        "upload_not_failed", f"The upload is {state}, and only a failed one can be retried", uploadStatus=state
    )


def _plan_fixed(fields: Sequence[str]) -> Failure:
    detail = (
        f"Rows of the file are in the table already, loaded by a plan that {', '.join(fields)} would change. Retry "
        "without, or cancel the upload, take its rows out, and upload the file anew."
    )
    return Failure("plan_fixed", detail, fields=list(fields))
