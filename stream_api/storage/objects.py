"""Objects and multipart uploads in one bucket of an S3-compatible store.

Every request has a deadline per attempt and is tried again with backoff where the store cannot be reached or asks for
it. The retries are ours and not botocore's: aiohttp's read timeout begins when the body has been sent, so that a store
that stops reading would hang a request for ever, and a repeated `If-None-Match: *` must be told from a taken key.

Memory: a body is sent from the caller's own bytes. `BytesIO.getvalue` of a full buffer and `_Body(data)` share them
(CPython copies on write only), so that attempts have a reader each and no copy.
"""

from __future__ import annotations

import asyncio
import functools
import io
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.storage.descriptions import Descriptions
from stream_api.storage.errors import AlreadyExists, error_code, translate

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_s3.type_defs import GetObjectOutputTypeDef, ListPartsOutputTypeDef

T = TypeVar("T")
log = structlog.stdlib.get_logger(__name__)

#: A body may take this much longer for each byte: slower than 64 KiB/s the store is taken for stalled.
_LEAST_BYTES_PER_SECOND: Final = 64 * 1024
_MAX_BACKOFF_SECONDS: Final = 10.0
#: Connections beside those of parts: status requests, manifests, downloads of loads, the reconciler.
_SPARE_CONNECTIONS: Final = 16
#: Type of the data of uploads, as the store sees it; what the client said is in the manifest. As `text/csv`, or without
#: a type for each part, SeaweedFS compresses it, which is a third of the time it takes to store something, and three
#: quarters of that to read it (docs/performance.md).
DATA_TYPE: Final = "application/csv"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store knows of an object. `etag` is quoted, as the store gave it."""

    size_bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """How often and after which pauses something is tried again.

    :param max_attempts: tries altogether.
    :param backoff_seconds: pause before the second try; doubled for each further one, up to 10 s.
    """

    max_attempts: int
    backoff_seconds: float

    async def pause(self, attempt: int) -> None:
        """Wait after the failure of try number `attempt` (from 1), with jitter so that clients do not come in step."""
        limit = min(_MAX_BACKOFF_SECONDS, self.backoff_seconds * 2 ** (attempt - 1))
        await asyncio.sleep(limit * random.uniform(0.5, 1.0))  # noqa: S311


class ObjectStore:
    """One bucket. Made by `open_object_store`; any number of tasks may use it at once.

    All methods raise `Failure`: `storage_unavailable` (transient) when the store cannot be reached, stalls or asks us
    to come back; `storage_refused` when it says no, with what to do about it.
    """

    def __init__(self, client: S3Client, settings: Settings) -> None:
        self._client: Final = client
        self._bucket: Final = settings.bucket
        self._timeout_seconds: Final = settings.s3_connect_timeout_seconds + settings.s3_read_timeout_seconds
        self.read_timeout_seconds: Final = settings.s3_read_timeout_seconds
        self.retrying: Final = Retrying(settings.s3_max_attempts, settings.s3_backoff_seconds)

    async def put(
        self,
        key: str,
        body: bytes | io.BytesIO,
        *,
        content_type: str = "application/octet-stream",
        if_absent: bool = False,
    ) -> str:
        """Store an object and return its ETag.

        :param if_absent: store it only if there is none (`If-None-Match: *`).
        :raises AlreadyExists: with `if_absent`, if the key is taken by other content. The same content counts as
            ours: the answer to an earlier try, of ours or of aiohttp (which repeats a PUT whose connection broke),
            may have been lost after the store had done it.
        """
        data = _bytes_of(body)
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}

        async def request() -> str:
            answer = await self._client.put_object(
                Bucket=self._bucket, Key=key, Body=_Body(data), ContentType=content_type, **condition
            )
            return answer["ETag"]

        try:
            return await self._call("put", request, size_bytes=len(data))
        except Failure as failure:
            if not (if_absent and failure.code == "data_changed"):
                raise
            if await self.get(key) == data:
                return (await self.stat(key)).etag
            raise AlreadyExists(key) from failure

    async def get(self, key: str) -> bytes:
        """A whole small object.

        :raises Failure: `data_gone` if there is none.
        """

        async def request() -> bytes:
            answer = await self._client.get_object(Bucket=self._bucket, Key=key)
            async with answer["Body"] as body:
                return await body.read()

        return await self._call("get", request)

    async def open_range(self, key: str, *, etag: str, start: int, end: int) -> GetObjectOutputTypeDef:
        """The answer to one ranged GET of bytes [start, end), not tried again; whoever gets it closes its body.

        :raises Failure: `data_gone` if there is no such object, `data_changed` if its ETag is another.
        """
        return await self._call(
            "get_range",
            lambda: self._client.get_object(
                Bucket=self._bucket, Key=key, IfMatch=etag, Range=f"bytes={start}-{end - 1}"
            ),
            max_attempts=1,
        )

    async def stat(self, key: str) -> ObjectInfo:
        """Size and ETag of an object.

        :raises Failure: `data_gone` if there is none.
        """
        answer = await self._call("stat", lambda: self._client.head_object(Bucket=self._bucket, Key=key))
        return ObjectInfo(answer["ContentLength"], answer["ETag"])

    async def delete(self, key: str) -> None:
        """Delete an object; one that is absent is fine."""
        try:
            await self._call("delete", lambda: self._client.delete_object(Bucket=self._bucket, Key=key))
        except Failure as failure:
            if failure.code != "data_gone":
                raise

    async def list_keys(self, prefix: str) -> AsyncGenerator[str, None]:
        """The keys that begin with `prefix`, in the store's order, a page of up to 1,000 at a time."""
        more: dict[str, Any] = {}
        while True:
            page = await self._call(
                "list",
                lambda more=more: self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, **more),  # type: ignore[misc]
            )
            for item in page.get("Contents", ()):
                yield item["Key"]
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    async def check(self) -> None:
        """Ask once, without trying again, whether the bucket is there and may be used."""
        try:
            await self._call("check", lambda: self._client.head_bucket(Bucket=self._bucket), max_attempts=1)
        except Failure as failure:
            if failure.code == "data_gone":
                detail = f"The bucket {self._bucket} does not exist: create it, or check STREAM_API_BUCKET."
                raise Failure("storage_refused", detail) from failure
            raise

    # -- multipart uploads -----------------------------------------------------------------------------------

    async def create_multipart(self, key: str, *, content_type: str = "application/octet-stream") -> str:
        """Begin a multipart upload and return its multipart id.

        A try whose answer was lost can leave another one open: `abort_multipart` finds it by its key.
        """
        answer = await self._call(
            "create_multipart",
            lambda: self._client.create_multipart_upload(Bucket=self._bucket, Key=key, ContentType=content_type),
        )
        return answer["UploadId"]

    async def upload_part(self, key: str, multipart_id: str, number: int, body: bytes | io.BytesIO) -> str:
        """Send part `number` (from 1) and return its ETag. Sending it again replaces it."""
        data = _bytes_of(body)
        answer = await self._call(
            "upload_part",
            lambda: self._client.upload_part(
                Bucket=self._bucket, Key=key, UploadId=multipart_id, PartNumber=number, Body=_Body(data)
            ),
            size_bytes=len(data),
        )
        return answer["ETag"]

    async def complete_multipart(self, key: str, multipart_id: str, parts: Sequence[tuple[int, str]]) -> str:
        """Make an object of the parts (number and ETag of each, by number) and return its ETag.

        The key must be used by this multipart upload alone: where the answer to an earlier try was lost, the object
        itself says that it was done.
        """
        listing: Any = {"Parts": [{"PartNumber": number, "ETag": etag} for number, etag in parts]}

        async def request() -> str:
            try:
                answer = await self._client.complete_multipart_upload(
                    Bucket=self._bucket, Key=key, UploadId=multipart_id, MultipartUpload=listing
                )
            except self._client.exceptions.ClientError as exc:
                if error_code(exc) == "NoSuchUpload":
                    return await self._etag_of(key, otherwise=exc)
                raise
            return answer["ETag"]

        return await self._call("complete_multipart", request)

    async def list_multiparts(self, prefix: str) -> list[tuple[str, str]]:
        """Key and multipart id of every unfinished multipart upload of a key, or of all with an empty prefix.

        In between lies no agreement: MinIO takes the prefix for a whole key, where others match its beginning. And
        with an empty one it lists, all in one page, those that were begun since it was started; the others it removes
        by itself, after 24 h (`stale_uploads_expiry`).
        """
        found: list[tuple[str, str]] = []
        more: dict[str, Any] = {}
        while True:
            page = await self._call(
                "list_multiparts",
                lambda more=more: self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=prefix, **more),  # type: ignore[misc]
            )
            found += [(item["Key"], item["UploadId"]) for item in page.get("Uploads", ())]
            if not page.get("IsTruncated"):
                return found
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    async def parts_seen(self, key: str, multipart_id: str) -> list[tuple[int, str, str]]:
        """Number, ETag and time of every part that the store has; none also for an upload that is no more.

        What changes with every part that comes, also with one that is sent again.
        """
        found: list[tuple[int, str, str]] = []
        more: dict[str, Any] = {}

        async def request() -> ListPartsOutputTypeDef | None:
            try:
                return await self._client.list_parts(Bucket=self._bucket, Key=key, UploadId=multipart_id, **more)
            except self._client.exceptions.ClientError as exc:
                if error_code(exc) == "NoSuchUpload":
                    return None
                raise

        while True:
            page = await self._call("list_parts", request)
            if page is None:
                return []
            parts = page.get("Parts", [])
            found += [(part["PartNumber"], part["ETag"], part["LastModified"].isoformat()) for part in parts]
            if not page.get("IsTruncated") or not parts:
                return found
            more = {"PartNumberMarker": parts[-1]["PartNumber"]}

    async def abort_multipart(self, key: str, multipart_id: str | None = None) -> None:
        """Abort every multipart upload of a key until the store knows of none and of no part. One that is gone is fine.

        An abort races with parts under way, so no task may still be sending parts of this key.

        :param multipart_id: one that is known, for a store that does not list it yet.
        :raises Failure: also `storage_unavailable` if it is still there after several aborts.
        """
        open_ids = {multipart_id} if multipart_id is not None else set()
        for attempt in itertools.count(1):
            open_ids |= {found_id for found_key, found_id in await self.list_multiparts(key) if found_key == key}
            for open_id in open_ids:
                await self._abort_once(key, open_id)
            open_ids = {open_id for open_id in open_ids if await self._is_open(key, open_id)}
            if not open_ids:
                return
            if attempt >= self.retrying.max_attempts:
                raise Failure("storage_unavailable", "The object storage keeps a multipart upload that was aborted.")
            await self.retrying.pause(attempt)

    async def _etag_of(self, key: str, *, otherwise: Exception) -> str:
        try:
            return (await self._client.head_object(Bucket=self._bucket, Key=key))["ETag"]
        except self._client.exceptions.ClientError:
            raise otherwise from None

    async def _abort_once(self, key: str, multipart_id: str) -> None:
        async def request() -> None:
            try:
                await self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=multipart_id)
            except self._client.exceptions.ClientError as exc:
                if error_code(exc) != "NoSuchUpload":
                    raise

        await self._call("abort_multipart", request)

    async def _is_open(self, key: str, multipart_id: str) -> bool:
        """Whether a part is left. A store may also answer with an empty list for an upload that it has forgotten."""

        async def request() -> bool:
            try:
                answer = await self._client.list_parts(Bucket=self._bucket, Key=key, UploadId=multipart_id, MaxParts=1)
            except self._client.exceptions.ClientError as exc:
                if error_code(exc) == "NoSuchUpload":
                    return False
                raise
            return bool(answer.get("Parts"))

        return await self._call("list_parts", request)

    async def _call(
        self,
        operation: str,
        request: Callable[[], Awaitable[T]],
        *,
        size_bytes: int = 0,
        max_attempts: int | None = None,
    ) -> T:
        """Run a request, with a deadline for each try, as often as it may help.

        :param size_bytes: what each try sends, for its deadline.
        """
        attempts = self.retrying.max_attempts if max_attempts is None else max_attempts
        for attempt in itertools.count(1):
            try:
                async with asyncio.timeout(self._timeout_seconds + size_bytes / _LEAST_BYTES_PER_SECOND):
                    return await request()
            except Exception as exc:
                failure = translate(exc)
                if failure is None:
                    raise
                if not failure.transient or attempt >= attempts:
                    raise failure from exc
                log.info("storage.retry", operation=operation, attempt=attempt, error=repr(exc))
            await self.retrying.pause(attempt)
        raise AssertionError  # pragma: no cover  (count() does not end; mypy cannot know)


@asynccontextmanager
async def open_object_store(settings: Settings) -> AsyncIterator[ObjectStore]:
    """The bucket of the settings. Does not connect; what is wrong shows with the first request."""
    secret = settings.s3_secret_access_key
    parts_at_once = settings.upload_budget_bytes // settings.part_bytes
    config = AioConfig(
        signature_version="s3v4",
        s3={"addressing_style": settings.s3_addressing_style},
        # Some stores fail on the checksums that botocore adds by itself; we send SHA-256 signatures (http) as it is.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=settings.s3_connect_timeout_seconds,
        read_timeout=settings.s3_read_timeout_seconds,
        max_pool_connections=parts_at_once + 2 * settings.load_concurrency + _SPARE_CONNECTIONS,
        retries={"total_max_attempts": 1, "mode": "standard"},
    )
    async with _session().create_client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key_id,
        aws_secret_access_key=None if secret is None else secret.get_secret_value(),
        config=config,
    ) as client:
        # S3 has no type for a part, so botocore has no parameter for it.
        client.meta.events.register("before-call.s3.UploadPart", _name_type_of_part)
        yield ObjectStore(client, settings)


def _name_type_of_part(params: dict[str, Any], **_: object) -> None:
    params["headers"]["Content-Type"] = DATA_TYPE


@functools.cache
def _session() -> AioSession:
    # One for the process: making one, and its first client, reads a megabyte of JSON.
    session = get_session()
    session.get_component("data_loader").file_loader = Descriptions()
    return session


class _Body(io.BytesIO):
    """Reads bytes without a copy of them.

    aiohttp asks for a view of the buffer to learn its length. As one could write into that, `BytesIO` copies what it
    shares with others: every part on its way to S3 would be held twice.
    """

    def getbuffer(self) -> memoryview:
        return memoryview(self.getvalue())


def _bytes_of(body: bytes | io.BytesIO) -> bytes:
    return body.getvalue() if isinstance(body, io.BytesIO) else body
