"""Stage 1: one request into the object storage.

    client ─► BodyReader ─► PartCutter ─► Channel of parts ─► senders ─► S3 parts ─► object, marker, manifest

The body is a form with the file in it (`multipart.FormReader`) or the file itself (`raw.RawReader`).

A slow S3 leaves the senders waiting, then the channel is full, then the cutter waits in `send` and no longer reads,
and in the end aiohttp stops reading the socket. The budget does the same for all uploads of the process together.

Memory of all uploads (`memory_bytes`): the budget, and for each connection the kernel's receive buffer, aiohttp's
read buffer and some chunks. One upload holds at most 2 + `parts_in_flight` parts of the budget: one is filled, one is
queued, the others are on their way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol, Self
from uuid import UUID

import structlog
from aiohttp import hdrs

from stream_api.config import KIB, Settings
from stream_api.datasets.dataset import Datasets
from stream_api.dialects.detection import HEAD_BYTES, Beginning, detect_in
from stream_api.dialects.dialect import Dialect
from stream_api.errors import Failure
from stream_api.flow.budget import ByteBudget
from stream_api.flow.causes import end_frames, first_cause
from stream_api.flow.channel import Channel
from stream_api.flow.tasks import cancel_and_wait, in_own_task
from stream_api.options import Options
from stream_api.storage.errors import AlreadyExists
from stream_api.storage.manifests import Manifest, read_manifest
from stream_api.storage.objects import ObjectStore
from stream_api.upload.body import CHUNK_BYTES, BodyReader, File, Incoming, media_type_of
from stream_api.upload.buffers import Buffers
from stream_api.upload.claims import KeyClaims
from stream_api.upload.client import ClientStream, watch_client
from stream_api.upload.form import Form
from stream_api.upload.ids import derived_upload_id, new_upload_id
from stream_api.upload.leftovers import Leftovers
from stream_api.upload.multipart import MEDIA_TYPE as FORM
from stream_api.upload.multipart import FormReader
from stream_api.upload.parts import Part, PartCutter, too_large
from stream_api.upload.raw import MEDIA_TYPES as RAW
from stream_api.upload.raw import RawReader
from stream_api.upload.replay import Received, check_same, replay
from stream_api.upload.transfer import Transfer

log = structlog.stdlib.get_logger(__name__)

#: What a request may be longer than its file and its text fields: headers and boundaries of the fields.
_FORM_OVERHEAD_BYTES: Final = 64 * KIB
#: How long a failed request waits for its leftovers to be removed before it is answered.
_DISCARD_WAIT_SECONDS: Final = 5.0
#: How long a cancelled request (a server that stops) waits for its last steps.
_COMMIT_WAIT_SECONDS: Final = 10.0
#: How long an upload with an `Idempotency-Key` waits for a word of the database.
_DATABASE_SECONDS: Final = 2.0
#: What is said when a form is refused before its end.
_FIELDS_FIRST: Final = "(Fields of the form that say otherwise have to come before the file.)"
#: aiohttp's buffer of a body that is not read: twice `read_bufsize`, and one read of the socket beyond.
READ_BUFFER_BYTES: Final = 64 * KIB
_CONNECTION_BYTES: Final = 3 * READ_BUFFER_BYTES + 5 * CHUNK_BYTES + HEAD_BYTES


def memory_bytes(settings: Settings) -> int:
    """The most memory that uploads take, the kernel's receive buffers included (it doubles what is asked for)."""
    per_connection = 2 * settings.socket_receive_buffer_bytes + _CONNECTION_BYTES
    return settings.upload_budget_bytes + settings.max_connections * per_connection


@dataclass(frozen=True, slots=True)
class Progress:
    """What can be seen of an upload under way."""

    stream: ClientStream
    channel: Channel[Part]


class Check(Protocol):
    """Refuses a file whose beginning shows that it cannot be loaded: `load.precheck.Precheck`."""

    async def __call__(  # noqa: D102
        self, beginning: Beginning, *, dialect: Dialect, dataset: str, options: Options
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Uploads:
    """What all uploads of a process share.

    :param budget: bounds the parts that all of them hold; `ByteBudget(settings.upload_budget_bytes)`.
    :param claims: of uploads with an `Idempotency-Key`.
    :param is_expiring: whether PostgreSQL has an upload as expired; what is left of that is being removed.
    :param datasets: the datasets that an upload may name.
    :param check: what is asked about a file as soon as its beginning and its dataset are known.
    :param max_file_bytes: bound for a file; `settings.max_file_bytes` but in tests.
    """

    settings: Settings
    store: ObjectStore
    budget: ByteBudget
    leftovers: Leftovers
    claims: KeyClaims
    is_expiring: Callable[[UUID], Awaitable[bool]]
    max_file_bytes: int
    datasets: Datasets
    check: Check
    #: Uploads under way, by the key of their data: several may have one id.
    active: dict[str, Progress] = field(default_factory=dict)
    #: Of the parts; none are kept while no upload is under way.
    buffers: Buffers = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "buffers", Buffers(self.settings.part_bytes))  # frozen

    def ended(self, key: str) -> None:
        """An upload is no longer under way."""
        del self.active[key]
        if not self.active:
            self.buffers.clear()


async def receive_upload(uploads: Uploads, incoming: Incoming) -> Received:
    """Take in one file. When it returns, file and manifest are stored, by this request or an earlier one.

    When it fails, what was stored is removed before it raises, or goes on being removed when that takes long.

    :raises Failure: with any code of Stage 1; `storage_unavailable` and `storage_refused`.
    """
    key = incoming.idempotency_key
    upload_id = new_upload_id() if key is None else derived_upload_id(key)
    if incoming.content_length is not None:
        most = uploads.max_file_bytes + uploads.settings.max_field_bytes + _FORM_OVERHEAD_BYTES
        if incoming.content_length > most:
            raise too_large(uploads.max_file_bytes)
    request = _Request.of(uploads, incoming)
    if key is None:
        return await _Upload(uploads, upload_id, request, derived=False).run()
    first = await read_manifest(uploads.store, upload_id)
    if first is None:
        async with uploads.claims.holding(upload_id):
            # Whoever held the claim before may have stored the upload since we looked.
            first = await read_manifest(uploads.store, upload_id)
            if first is None:
                await _check_not_expiring(uploads, upload_id)
                return await _Upload(uploads, upload_id, request, derived=True).run()
    return await replay(first, request.stream, request.form, request.reader, uploads.settings)


async def _check_not_expiring(uploads: Uploads, upload_id: UUID) -> None:
    """An upload that is being removed takes the marker of its id with it: the next one has to wait.

    A database that is away stops no upload: it is away for the janitor too.

    :raises Failure: `idempotency_key_in_use`.
    """
    try:
        async with asyncio.timeout(_DATABASE_SECONDS):
            expiring = await uploads.is_expiring(upload_id)
    except (Failure, TimeoutError) as exc:
        log.info("upload.expiry_unknown", upload_id=str(upload_id), error=repr(exc))
        return
    if expiring:
        detail = "The upload with this Idempotency-Key has expired and is just being removed; ask again in a minute."
        raise Failure("idempotency_key_in_use", detail, retryAfterSeconds=60, uploadId=str(upload_id))


@dataclass(frozen=True, slots=True)
class _Request:
    """The body of a request, and what reads it."""

    stream: ClientStream
    form: Form
    reader: BodyReader

    @classmethod
    def of(cls, uploads: Uploads, incoming: Incoming) -> Self:
        settings, headers = uploads.settings, incoming.headers
        stream = ClientStream(incoming.body, incoming.content_length)
        form = Form(uploads.datasets, settings.max_fields, settings.max_field_bytes)
        form.take(incoming.parameters)
        media_type = media_type_of(headers.get(hdrs.CONTENT_TYPE))
        if media_type == FORM:
            return cls(stream, form, FormReader(headers, stream, form))
        if media_type in RAW:
            return cls(stream, form, RawReader(headers, stream))
        detail = (
            f"A body of Content-Type {media_type[:100]!r} is not taken: send the file in the field file of a "
            f'multipart/form-data (curl: -F "file=@large.csv"), or by itself (curl: -H "Content-Type: text/csv" '
            "--data-binary @large.csv, better -X POST -T large.csv, which does not read it into memory first)."
        )
        raise Failure("content_type_unsupported", detail, allowed=sorted({FORM, *RAW}))


class _Upload:
    """One upload from its first byte to its manifest.

    :param derived: the id comes from an `Idempotency-Key`, so that another upload may have the same.
    """

    def __init__(self, uploads: Uploads, upload_id: UUID, request: _Request, *, derived: bool) -> None:
        settings = uploads.settings
        self._uploads: Final = uploads
        self._id: Final = upload_id
        self._stream: Final = request.stream
        self._form: Final = request.form
        self._reader: Final = request.reader
        self._channel: Final[Channel[Part]] = Channel("upload.parts", max_items=1, max_bytes=settings.part_bytes)
        self._cutter: Final = PartCutter(
            self._stream,
            uploads.budget,
            uploads.buffers,
            self._channel,
            max_file_bytes=uploads.max_file_bytes,
            admission_timeout_seconds=settings.admission_timeout_seconds,
        )
        self._transfer: Final = Transfer(uploads.store, self._id, uploads.buffers, derived=derived)
        self._file_name: str | None = None
        self._content_type = ""
        self._dialect = Dialect()
        #: By what the beginning of the file was judged.
        self._judged_by: object = None
        self._stored = False

    async def run(self) -> Received:
        self._uploads.active[self._transfer.key] = Progress(self._stream, self._channel)
        try:
            only = await in_own_task(self._receive())
            await self._judge()
            return Received(await self._commit(only))
        except AlreadyExists:
            log.info("upload.lost_to_another", upload_id=str(self._id), key=self._transfer.key)
            await self._discard()
            return await self._other()
        except BaseException as exc:
            if not self._stored:
                self._log_failure(exc)
                await self._discard()
            raise
        finally:
            self._cutter.release()
            self._uploads.ended(self._transfer.key)

    async def _discard(self) -> None:
        self._cutter.release()
        await self._uploads.leftovers.remove(self._transfer, wait_seconds=_DISCARD_WAIT_SECONDS)

    async def _other(self) -> Received:
        """The upload that came first, if it is the same."""
        first = await read_manifest(self._uploads.store, self._id)
        if first is None:
            raise Failure("storage_unavailable", "Another upload with this Idempotency-Key was given up: try again.")
        check_same(first, self._cutter.sha256, self._form)
        return Received(first, replayed=True)

    async def _receive(self) -> Part | None:
        """Read the whole body; what does not fit into one part is in S3, as parts, when it returns."""
        settings = self._uploads.settings
        only: Part | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(settings.parts_in_flight):
                    group.create_task(self._send_parts())
                watch = group.create_task(
                    watch_client(
                        self._stream,
                        settings,
                        others_wait=lambda: self._cutter.holds_room and self._uploads.budget.waiting > 0,
                    )
                )
                try:
                    async with aclosing(self._reader.files()) as files:
                        async for file in files:
                            only = await self._read_file(file)
                except BaseException as exc:
                    # The channel keeps it, and with it the part that was being filled.
                    end_frames(exc)
                    self._channel.fail(exc)
                    raise
                finally:
                    watch.cancel()
                self._channel.close()
        except BaseExceptionGroup as failures:
            # Parts are among their variables, whose room is given back next.
            end_frames(failures)
            raise first_cause(failures) from None
        return only

    async def _read_file(self, file: File) -> Part | None:
        self._file_name, self._content_type = file.name, file.content_type
        return await self._cutter.cut(file, begun=self._judge_early)

    async def _judge_early(self) -> None:
        """Judge the file by its beginning, where the dataset is known by now: nobody has to send the rest in vain.

        :raises Failure: as `_judge`.
        """
        if self._reader.brings_fields and "dataset" not in self._form.names:
            return
        try:
            await self._judge()
        except Failure as failure:
            if not self._reader.brings_fields:
                raise
            detail = f"{failure.detail} {_FIELDS_FIRST}"
            raise Failure(failure.code, detail, transient=failure.transient, **failure.extra) from failure

    async def _judge(self) -> None:
        """Find the dialect and have the header judged, again when fields after the file have said something else.

        :raises Failure: as `detect_in` and `Check`.
        """
        form, beginning = self._form, self._cutter.beginning
        by = (form.dataset, form.dialect, form.options)
        if beginning is None or by == self._judged_by:
            return
        self._dialect = detect_in(beginning, form.dialect)
        await self._uploads.check(beginning, dialect=self._dialect, dataset=form.dataset, options=form.options)
        self._judged_by = by

    async def _send_parts(self) -> None:
        async for part in self._channel:
            self._cutter.queued.discard(part.lease)
            await self._transfer.send(part)
            # While this waits for the next one, nothing may hold on to what S3 has acknowledged.
            del part

    async def _commit(self, only: Part | None) -> Manifest:
        """The last steps. They are not torn apart by a cancellation, for then nobody would know what is stored."""
        commit = asyncio.create_task(self._transfer.commit(only, self._manifest))
        try:
            manifest = await asyncio.shield(commit)
        except Failure as failure:
            if not self._transfer.may_be_stored:
                raise
            detail = (
                f"{failure.detail} The file may be stored all the same: ask for its status before you send it again."
            )
            known = {"uploadId": str(self._id), "statusUrl": f"/upload/{self._id}/status"}
            raise Failure(failure.code, detail, transient=failure.transient, **(failure.extra | known)) from failure
        except asyncio.CancelledError:
            await asyncio.wait({commit}, timeout=_COMMIT_WAIT_SECONDS)
            await cancel_and_wait(commit)
            self._stored = not commit.cancelled() and commit.exception() is None
            raise
        self._stored = True
        return manifest

    def _manifest(self, key: str, etag: str) -> Manifest:
        return Manifest(
            upload_id=self._id,
            key=key,
            etag=etag,
            size_bytes=self._cutter.size_bytes,
            sha256=self._cutter.sha256,
            file_name=self._file_name if self._form.file_name is None else self._form.file_name,
            content_type=self._content_type,
            dataset=self._form.dataset,
            callback_url=self._form.callback_url,
            fields=self._form.fields,
            dialect=self._dialect,
            max_rejects=self._form.max_rejects,
            options=self._form.options,
            segment_bytes=self._uploads.settings.segment_bytes,
            created_at=datetime.now(UTC),
        )

    def _log_failure(self, exc: BaseException) -> None:
        log.info(
            "upload.failed",
            upload_id=str(self._id),
            code=exc.code if isinstance(exc, Failure) else type(exc).__name__,
            received_bytes=self._stream.received_bytes,
        )
