"""What is known of an upload, from the first of Redis, Postgres and S3 that knows it."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from uuid import UUID

import msgspec
import structlog
from aiohttp import web

from stream_api.errors import Failure
from stream_api.http.collaborators import Collaborators
from stream_api.ledger.rows import ENDED, UploadRow
from stream_api.load.reporting import record_of_row, status_record
from stream_api.status.record import StatusRecord
from stream_api.storage.manifests import Manifest

log = structlog.stdlib.get_logger(__name__)

#: States of a record that others can follow on; what is cancelled or completed stays so until it expires.
_CHANGING: Final = frozenset({"uploaded", "processing", "failed"})
#: For asking PostgreSQL whether Redis is behind.
_LOOK_SECONDS: Final = 1.0


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


def rejects_url(upload_id: UUID) -> str:
    """Path of the rejects, relative as well."""
    return f"/upload/{upload_id}/rejects"


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
            return _document(await _brought_up_to_date(collaborators, record))
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


async def _brought_up_to_date(collaborators: Collaborators, record: StatusRecord) -> StatusRecord:
    """The record of Redis, or what PostgreSQL has in its place.

    Whoever brings an upload to its end writes its record afterwards, and a Redis that is away at that moment and comes
    back with what it had would go on saying that the upload runs. So a record that can still change is not believed
    without a question, which costs a look-up by the primary key; without an answer it is better than nothing.
    """
    if record.status not in _CHANGING:
        return record
    try:
        async with asyncio.timeout(_LOOK_SECONDS):
            if record.status not in ENDED and not await collaborators.rows.has_ended(record.upload_id):
                return record
            row = await collaborators.rows.get(record.upload_id)
    except (Failure, TimeoutError) as error:
        log.info("status.not_compared", upload_id=str(record.upload_id), error=repr(error))
        return record
    if row is None or row.revision <= record.revision:
        return record
    known = record_of_row(
        row,
        file_name=record.file_name,
        size_bytes=record.size_bytes,
        sha256=record.sha256,
        dialect=record.dialect,
        options=record.options,
        max_rejects=record.max_rejects,
    )
    log.info("status.record_was_behind", upload_id=str(record.upload_id), said=record.status, now=known.status)
    try:
        await collaborators.statuses.write(known)
    except Failure as failure:
        log.info("status.record_not_repaired", upload_id=str(record.upload_id), code=failure.code)
    return known


def record_of_manifest(manifest: Manifest) -> StatusRecord:
    """The record of an upload that is stored and that nobody has taken yet."""
    return StatusRecord(
        upload_id=manifest.upload_id,
        status="uploaded",
        file_name=manifest.file_name,
        size_bytes=manifest.size_bytes,
        sha256=manifest.sha256,
        dialect=manifest.dialect,
        options=manifest.options,
        max_rejects=manifest.max_rejects,
        dataset=manifest.dataset,
        created_at=manifest.created_at,
        updated_at=manifest.created_at,
        status_url=status_url(manifest.upload_id),
    )


def document_of_row(row: UploadRow, manifest: Manifest | None) -> tuple[StatusRecord, dict[str, Any]]:
    """Record and document of an upload that a worker has taken.

    :param manifest: adds name, hash and dialect of the file; without it the document says null for them.
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
    if manifest is None and row.amendments is None:
        record = msgspec.structs.replace(record, dialect=None, options=None)
    document = _document(record)
    if manifest is None:
        document["sha256"] = None
    return record, document


def _document(record: StatusRecord, *, stale: bool = False) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(record)
    del document["revision"]  # it orders the copies of a record, and says nothing to a client
    document["stale"] = stale
    document["statusUrl"] = status_url(record.upload_id)
    document["rejectsUrl"] = rejects_url(record.upload_id)
    return document


def not_found() -> Failure:
    """What is said of an upload that nobody knows."""
    return Failure("upload_not_found", "There is no upload with this id.")
