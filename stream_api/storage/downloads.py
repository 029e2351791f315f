"""A download that goes on where it broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import structlog

from stream_api.errors import Failure
from stream_api.storage.errors import translate
from stream_api.storage.objects import ObjectStore

log = structlog.stdlib.get_logger(__name__)


async def read_range(
    store: ObjectStore, key: str, *, etag: str, start: int, end: int, chunk_bytes: int
) -> AsyncGenerator[bytes, None]:
    """Bytes [start, end) of an object, in order and without gap, in chunks of 1 to `chunk_bytes` bytes.

    A download that breaks (a reset, a short body, a stall) goes on with a new request for what is missing, after a
    pause that grows while there is no progress. Nothing is read ahead but what the socket's buffers hold, so a
    consumer that stops asking stops the download. Use it in `async with aclosing(...)`: closing it early closes the
    connection.

    :param etag: of the object that was stored; every request carries it as `If-Match`.
    :raises Failure: `data_gone`, `data_changed` (a range past the end of the object too), `storage_refused`, and
        `storage_unavailable` after `Settings.s3_max_attempts` tries in a row without a single byte.
    """
    position = start
    failures = 0
    while position < end:
        before = position
        try:
            answer = await store.open_range(key, etag=etag, start=position, end=end)
            body = answer["Body"]
            try:
                _check_answer(answer.get("ContentRange"), answer["ETag"], etag=etag, position=position)
                while position < end:
                    async with asyncio.timeout(store.read_timeout_seconds):
                        chunk = await body.read(min(chunk_bytes, end - position))
                    if not chunk:
                        # The body ended early, and cleanly: as good as broken.
                        raise ConnectionResetError
                    position += len(chunk)
                    yield chunk
            finally:
                body.close()
        except Exception as exc:
            failure = translate(exc)
            if failure is None:
                raise
            failures = 1 if position > before else failures + 1
            if not failure.transient or failures >= store.retrying.max_attempts:
                if failure is exc:
                    raise
                raise failure from exc
            log.info("storage.download_resumed", key=key, offset=position, failures=failures, error=repr(exc))
            await store.retrying.pause(failures)


def _check_answer(content_range: str | None, answered_etag: str, *, etag: str, position: int) -> None:
    """Bytes of another place or of another object would go into the database unnoticed: look before using them."""
    if answered_etag != etag:
        raise Failure("data_changed", "The object in the object storage is not the one that was stored.")
    if content_range is None or not content_range.startswith(f"bytes {position}-"):
        raise Failure("storage_refused", "The object storage did not answer the range that was asked for.")
