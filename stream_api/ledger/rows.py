"""The row of an upload as PostgreSQL gives it back: its columns, and totals summed over its segments."""

# ruff: noqa: S608 (statements are put together from constants of this package only)
from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, get_args
from uuid import UUID

import asyncpg
import msgspec

from stream_api.ledger.pool import Connection
from stream_api.options import Mode

State = Literal["uploaded", "processing", "completed", "failed", "cancelled", "expired"]
WebhookState = Literal["pending", "delivered", "failed"]

#: States that nothing but a retry (of `failed`) leads out of.
ENDED: Final = frozenset({"completed", "failed", "cancelled", "expired"})

TOTALS: Final = """
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
CROSS JOIN LATERAL (
    SELECT coalesce(jsonb_agg(each.item ORDER BY number, each.place), '[]') AS first_rejects
    FROM (SELECT number, item, place
          FROM (SELECT number, first_rejects FROM stream_api.segments
                WHERE upload_id = upload.id AND table_oid IS NOT NULL AND first_rejects IS NOT NULL
                ORDER BY number LIMIT 10) AS early,
               jsonb_array_elements(first_rejects) WITH ORDINALITY AS item (item, place)
          ORDER BY number, place LIMIT 10) AS each
) AS shown
"""
COLUMNS: Final = (
    "upload.id, upload.dataset, upload.target_table, upload.state, upload.run, upload.size_bytes, upload.segment_bytes,"
    " upload.error, upload.created_at, upload.started_at, upload.ended_at, upload.updated_at, upload.revision,"
    " upload.callback_url, upload.webhook_state, upload.webhook_round, upload.webhook_attempts, upload.webhook_error,"
    " upload.webhook_at, upload.decoded_bytes, upload.mode, upload.dry_run, upload.staging_table,"
    " upload.amendments::text, total.*, by_code.*, shown.*"
)
GET: Final = f"SELECT {COLUMNS} FROM stream_api.uploads AS upload {TOTALS} WHERE upload.id = $1"


def updating(update: str, *, also: str = "") -> str:
    """An UPDATE that gives back the whole `UploadRow`.

    :param also: a statement on `upload`, the row that was updated. What it does to segments the totals do not show.
    """
    more = f", also AS ({also})" if also else ""
    return f"WITH upload AS ({update} RETURNING *){more} SELECT {COLUMNS} FROM upload {TOTALS}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """What an upload's row is made of when somebody first takes or cancels it; later the row's values stand.

    :param table: the target table, as SQL names it.
    :param compressed: what the segments have to cover is known only at the end.
    :param created_at: of the manifest. With an `Idempotency-Key` an id can come back after its first upload has
        expired; this tells the two apart.
    """

    upload_id: UUID
    dataset: str
    table: str
    size_bytes: int
    segment_bytes: int
    callback_url: str | None
    created_at: datetime
    compressed: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """The state of an upload, and the time of the manifest that its row was made of."""

    state: State
    created_at: datetime

    @property
    def ended(self) -> bool:
        """Whether that is an end state."""
        return self.state in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRow:
    """An upload as PostgreSQL knows it, with totals summed from its segments.

    :param table: the target table, as the dataset names it.
    :param run: of the last taking; 0 before the first.
    :param error: `{"code": …, "message": …, …}` of the last failure, JSON-ready; `None` unless failed.
    :param started_at: of the first run.
    :param ended_at: of the last end state; `None` while there is none.
    :param revision: of two rows of one upload the one with the higher is the later.
    :param decoded_bytes: what the segments have to cover; `None` of a compressed file that no load has read to its end.
    :param expected_bytes: a guess at that, of the load that runs.
    :param amendments: what retries have said anew, JSON as it was stored: see `storage.manifests.Amendments`.
    :param callback_url: where the webhook of an end state goes.
    :param webhook_state: of the delivery for the last end state; `None` where there is none.
    :param webhook_round: names this delivery; a later one has a higher number.
    :param webhook_attempts: tries so far. :param webhook_error: what went wrong with the last of them.
    :param webhook_at: of the last outcome.
    :param mode: as its plan says; `append` before there is one. :param dry_run: likewise.
    :param staging_table: where the rows of its segments lie, for SQL; `None` where that is the target.
    :param segments: committed ones.
    :param committed_bytes: of the decoded file.
    :param rows_staged: rows that lie in the staging table. Until they are moved nothing is inserted.
    :param rows_valid: rows that a dry run, once completed, has found the table to take. It has not got them.
    :param rejected: rows that were not loaded, by code.
    :param first_rejects: the first ten of them in the file's order, JSON-ready, as the ledger's rows have them.
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
    revision: int = 0
    decoded_bytes: int | None = None
    expected_bytes: int | None = None
    amendments: str | None = None
    callback_url: str | None = None
    webhook_state: WebhookState | None = None
    webhook_round: int = 0
    webhook_attempts: int = 0
    webhook_error: str | None = None
    webhook_at: datetime | None = None
    mode: Mode = "append"
    dry_run: bool = False
    staging_table: str | None = None
    segments: int = 0
    committed_bytes: int = 0
    rows_read: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_skipped: int = 0
    rows_staged: int = 0
    rows_valid: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    first_rejects: list[dict[str, Any]] = field(default_factory=list)

    @property
    def intake(self) -> Intake:
        """What this row was made of, for whoever cannot read the manifest."""
        return Intake(
            upload_id=self.id,
            dataset=self.dataset,
            table=self.table,
            size_bytes=self.size_bytes,
            segment_bytes=self.segment_bytes,
            callback_url=self.callback_url,
            created_at=self.created_at,
            compressed=self.decoded_bytes is None,
        )

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
        whole = self.expected_bytes if self.decoded_bytes is None else self.decoded_bytes
        return min(round(self.committed_bytes / whole, 4), 0.9999) if whole else 0.0

    @classmethod
    def from_record(cls, record: asyncpg.Record) -> UploadRow:
        """From a row of `COLUMNS`."""
        values: dict[str, Any] = dict(record.items())
        assert values["state"] in get_args(State)  # noqa: S101 (a CHECK of the table)
        error = values.pop("error")
        if values["staging_table"] is not None or values["dry_run"]:
            rows = sum(values.pop(name) for name in ("rows_inserted", "rows_updated", "rows_skipped"))
            values["rows_valid" if values["staging_table"] is None else "rows_staged"] = rows
        return cls(
            table=values.pop("target_table"),
            error=None if error is None else msgspec.json.decode(error),
            rejected=msgspec.json.decode(values.pop("rejected"), type=dict[str, int]),
            first_rejects=msgspec.json.decode(values.pop("first_rejects"), type=list[dict[str, Any]]),
            **values,
        )


async def recounted(connection: Connection, record: asyncpg.Record) -> UploadRow:
    """The row with totals that nothing is added to any more.

    An update that had to wait for a segment in flight counts the segments as they were when it began.
    """
    fresh = await connection.fetchrow(GET, record["id"])
    if fresh is None or (fresh["state"], fresh["run"]) != (record["state"], record["run"]):
        return UploadRow.from_record(record)  # retried or expired in this very moment
    return UploadRow.from_record(fresh)
