"""The status record of an upload: what `GET /upload/{id}/status` answers with."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from stream_api.dialects.dialect import Dialect
from stream_api.options import Options


class WebhookRecord(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What a client may know about the delivery of a webhook.

    :param state: `pending`, `delivered` or `failed`.
    :param attempts: tries so far, of this delivery.
    :param last_error: what went wrong with the last try; `None` when nothing did.
    :param last_at: when the last try ended.
    """

    state: str
    attempts: int = 0
    last_error: str | None = None
    last_at: datetime | None = None


class StatusRecord(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What a client may know about an upload. JSON in camelCase; times in UTC, as RFC 3339.

    `rows_read = rows_processed + rows_staged + rows_valid + rows_failed`, of which at most one of the first three is
    not 0, and `rows_processed = rows_inserted + rows_updated + rows_skipped`.

    :param status: `uploaded`, `processing`, `completed`, `failed`, `cancelled` or `expired`.
    :param rows_staged: of mode `atomic` or `replace`, until all rows go into the table together: those that are ready.
    :param rows_valid: of a dry run that is completed: rows that the table would have taken.
    :param mode: `append`, `atomic` or `replace`; `append` also before the load was first taken.
    :param dry_run: everything is checked and nothing loaded; known once the load was first taken.
    :param rejected: rows that were not loaded, by code.
    :param rejects: the first ten of them in the file's order: line, byteOffset, column, code and reason.
    :param progress: from 0 to 1: the share of the bytes that is in committed segments; 1 only when completed.
    :param error: `{"code": …, "message": …, …}` when failed.
    :param waiting_for: the service whose outage a load waits out (`database`, `storage`), if it does.
    :param dialect: how the file is read; `None` when only the manifest, which cannot be read now, knows it.
    :param options: what was asked of the load, and nothing that was not; `None` as `dialect`.
    :param max_rejects: as the upload or a retry gave it; `None` where they did not, and as `dialect`.
    :param run: of the last taking; 0 before the first.
    :param revision: of the upload's row, 0 before there is one. A record never replaces one of a later revision.
    :param webhook: the delivery for the last end state; `None` where there is none.
    :param started_at: of the first run.
    :param completed_at: when the end state was reached, whichever it is.
    """

    upload_id: UUID
    status: str
    rows_read: int = 0
    rows_processed: int = 0
    rows_failed: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_skipped: int = 0
    rows_staged: int = 0
    rows_valid: int = 0
    mode: str = "append"
    dry_run: bool = False
    rejected: dict[str, int] = msgspec.field(default_factory=dict)
    rejects: list[dict[str, Any]] = msgspec.field(default_factory=list)
    progress: float = 0.0
    error: dict[str, Any] | None = None
    waiting_for: str | None = None
    file_name: str | None = None
    size_bytes: int
    sha256: str
    dialect: Dialect | None = None
    options: Options | None = None
    max_rejects: str | None = None
    dataset: str
    run: int = 0
    revision: int = 0
    webhook: WebhookRecord | None = None
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    updated_at: datetime
    status_url: str | None = None
    rejects_url: str | None = None
