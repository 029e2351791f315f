"""Manifests of uploads that tests need not tell apart by more than they say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from stream_api.storage.keys import data_key
from stream_api.storage.manifests import Manifest

CREATED_AT: Final = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)


def make_manifest(upload_id: UUID, **values: Any) -> Manifest:
    """A manifest of an upload without a byte (its load is complete when it begins), with some values of one's own."""
    plain: dict[str, Any] = {
        "upload_id": upload_id,
        "key": data_key(upload_id),
        "etag": '"1"',
        "size_bytes": 0,
        "sha256": "00",
        "file_name": None,
        "content_type": "text/csv",
        "dataset": "webhook_events",
        "callback_url": None,
        "fields": {},
        "segment_bytes": 2048,
        "created_at": CREATED_AT,
    }
    return Manifest(**(plain | values))
