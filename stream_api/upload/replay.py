"""A request that repeats an upload which is stored: its body is read and compared, and nothing is stored."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.flow.causes import first_cause
from stream_api.flow.tasks import in_own_task
from stream_api.storage.manifests import Manifest
from stream_api.upload.body import CHUNK_BYTES, BodyReader, File
from stream_api.upload.client import ClientStream, watch_client
from stream_api.upload.form import FILE_FIELD, Form, meaning

#: Where a body breaks off, the file seems to go on with a piece of the boundary.
_SLACK_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Received:
    """What became of a request.

    :param manifest: of the upload that is stored.
    :param replayed: it was stored by an earlier request with the same `Idempotency-Key`.
    """

    manifest: Manifest
    replayed: bool = False


async def replay(first: Manifest, stream: ClientStream, form: Form, reader: BodyReader, settings: Settings) -> Received:
    """Read a body to its end, and answer with the upload that it repeats. Takes no room and asks nothing of the store.

    :param first: of the upload that is stored under this key.
    :raises Failure: `idempotency_key_reused` if this is another upload; whatever is wrong with the body.
    """
    check_same(first, await in_own_task(_read(first, stream, reader, settings)), form)
    return Received(first, replayed=True)


async def _read(first: Manifest, stream: ClientStream, reader: BodyReader, settings: Settings) -> str:
    """Read a body to its end; the SHA-256 of the file in it."""
    sha256 = ""
    try:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(watch_client(stream, settings, others_wait=lambda: False))
            try:
                async with aclosing(reader.files()) as files:
                    async for file in files:
                        sha256 = await _hash(first, file)
            finally:
                watch.cancel()
    except BaseExceptionGroup as failures:
        raise first_cause(failures) from None
    return sha256


def check_same(first: Manifest, sha256: str, form: Form) -> None:
    """Compare what a request has brought with what is stored; name and content type of the file do not count.

    Nor does it count how a thing is said: in a form, in a query, raw; `tab` or the character itself.

    :raises Failure: `idempotency_key_reused`, naming in `differs` what is not the same.
    """
    differs = [] if sha256 == first.sha256 else [FILE_FIELD]
    if form.dataset != first.dataset:
        differs.append("dataset")
    if form.callback_url != first.callback_url:
        differs.append("callbackUrl")
    if form.max_rejects != first.max_rejects:
        differs.append("maxRejects")
    names = sorted(form.fields.keys() | first.fields.keys())
    differs += [name for name in names if meaning(name, form.fields.get(name)) != meaning(name, first.fields.get(name))]
    if differs:
        raise _reused(first, differs)


async def _hash(first: Manifest, file: File) -> str:
    digest, size_bytes = hashlib.sha256(), 0
    while chunk := await file.read(CHUNK_BYTES):
        digest.update(chunk)
        size_bytes += len(chunk)
        if size_bytes > first.size_bytes + _SLACK_BYTES:
            # The rest of it, which may be long, can change nothing.
            raise _reused(first, [FILE_FIELD])
    if not size_bytes:
        raise Failure("file_empty", "The file is empty.")
    return digest.hexdigest()


def _reused(first: Manifest, differs: list[str]) -> Failure:
    what = ", ".join(name[:100] for name in differs)
    detail = f"This Idempotency-Key was used for an upload that differs in: {what}. Another upload needs another key."
    return Failure("idempotency_key_reused", detail, differs=differs, uploadId=str(first.upload_id))
