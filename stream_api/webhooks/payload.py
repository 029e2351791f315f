"""What a webhook says."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from stream_api.ledger.rows import UploadRow


class Payload(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The body of a webhook: JSON in camelCase.

    :param status: `completed`, `failed` or `cancelled`.
    :param rows_valid: only of a dry run: rows that the table would have taken.
    :param error: `{"code": …, "message": …, …}` of a failed upload; absent otherwise.
    :param timestamp: when the end state was reached, in UTC, as RFC 3339.
    """

    upload_id: UUID
    status: str
    rows_processed: int
    rows_failed: int
    rows_valid: int | msgspec.UnsetType = msgspec.UNSET
    error: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    timestamp: datetime


def payload_of(row: UploadRow) -> bytes:
    """The body for an upload that has ended: the same bytes whenever it is asked for, since an ended row stands still.

    :raises ValueError: the upload has not ended.
    """
    if row.ended_at is None:
        msg = f"the upload {row.id} is {row.state}"
        raise ValueError(msg)
    payload = Payload(
        upload_id=row.id,
        status=row.state,
        rows_processed=row.rows_processed,
        rows_failed=row.rows_failed,
        rows_valid=row.rows_valid if row.dry_run else msgspec.UNSET,
        error=msgspec.UNSET if row.error is None else row.error,
        timestamp=row.ended_at,
    )
    return msgspec.json.encode(payload)


def webhook_id(row: UploadRow) -> str:
    """What a receiver tells doubles by: the same for every try, and for every request to send it again."""
    return f"msg_{row.id}_{row.run}"
