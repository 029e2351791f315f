"""What is known of an upload, from the first of Redis, Postgres and S3 that knows it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import structlog
from aiohttp import web

from stream_api.errors import Failure
from stream_api.http.collaborators import Collaborators
from stream_api.ledger.rows import UploadRow
from stream_api.load.reporting import status_record
from stream_api.status.record import StatusRecord
from stream_api.storage.manifests import Manifest

log = structlog.stdlib.get_logger(__name__)


def upload_id_of(request: web.Request) -> UUID:
    """The upload that a path names.

    :raises Failure: `upload_not_found` for what is no id at all.
    """
    text = request.match_info["id"]
    try:
        return UUID(text)
    except ValueError as exc:
        raise not_found() from exc


def status_url(upload_id: UUID) -> str:
    """Path of the status document: relative, for what a proxy in front makes of the host is not ours to know."""
    return f"/upload/{upload_id}/status"


async def find_document(collaborators: Collaborators, upload_id: UUID) -> dict[str, Any]:
    """The status document of an upload; `stale` says that more may have happened than could be seen.

    :raises Failure: `upload_not_found` only when Redis, Postgres and S3 have all said no; otherwise the failure of the
        last of them that could not be asked.
    """
    unknown: Failure | None = None
    stale = False
    try:
        record = await collaborators.statuses.read(upload_id)
        if record is not None:
            return _document(record)
    except Failure as failure:
        unknown = failure
    row: UploadRow | None = None
    try:
        row = await collaborators.rows.get(upload_id)
    except Failure as failure:
        unknown, stale = failure, True
    manifest: Manifest | None = None
    try:
        manifest = await collaborators.manifests.read(upload_id)
    except Failure as failure:
        unknown = failure
    if row is not None:
        return document_of_row(row, manifest)[1]
    if manifest is not None:
        return _document(record_of_manifest(manifest), stale=stale)
    if unknown is not None:
        log.warning("status.unknown", upload_id=str(upload_id), code=unknown.code)
        raise Failure(
            "not_ready",
            f"Whether there is such an upload cannot be said now: {unknown.detail}",
            cause=unknown.code,
        ) from unknown
    raise not_found()


def record_of_manifest(manifest: Manifest) -> StatusRecord:
    """The record of an upload that is stored and that nobody has taken yet."""
    return StatusRecord(
        upload_id=manifest.upload_id,
        status="uploaded",
        file_name=manifest.file_name,
        size_bytes=manifest.size_bytes,
        sha256=manifest.sha256,
        dataset=manifest.dataset,
        created_at=manifest.created_at,
        updated_at=manifest.created_at,
        status_url=status_url(manifest.upload_id),
    )


def document_of_row(row: UploadRow, manifest: Manifest | None) -> tuple[StatusRecord, dict[str, Any]]:
    """Record and document of an upload that a worker has taken.

    :param manifest: adds name and hash of the file; without it the document says null for them.
    """
    known = manifest or Manifest(
        upload_id=row.id,
        key="",
        etag="",
        size_bytes=row.size_bytes,
        sha256="",
        file_name=None,
        content_type="",
        dataset=row.dataset,
        callback_url=None,
        fields={},
        segment_bytes=row.segment_bytes,
        created_at=row.created_at,
    )
    record = status_record(known, row)
    document = _document(record)
    if manifest is None:
        document["sha256"] = None
    return record, document


def _document(record: StatusRecord, *, stale: bool = False) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(record)
    del document["revision"]  # it orders the copies of a record, and says nothing to a client
    document["stale"] = stale
    document["statusUrl"] = status_url(record.upload_id)
    return document


def not_found() -> Failure:
    """What is said of an upload that nobody knows."""
    return Failure("upload_not_found", "There is no upload with this id.")
