"""Several uploads at once, by a store whose connections break: they share buffers, and none gets another's bytes."""

from __future__ import annotations

import asyncio
import hashlib
import os
from uuid import UUID

from stream_api.config import MIB, Settings
from stream_api.storage.manifests import read_manifest
from tests.conftest import Bucket
from tests.http.serving import Serving
from tests.upload.conftest import PART
from tests.upload.forms import END, HEADERS, file, until
from tests.upload.test_faults import check_nothing_left, serve_behind

#: Last parts that are small, empty ones that are none, and a file of one part.
SIZES = (3 * PART + 1, 2 * PART, 2 * PART + MIB, PART - 1)


async def upload(serving: Serving, content: bytes) -> bool:
    """Upload a file; whether it was stored, as it is then."""
    status, document = await serving.post(file(content) + END, headers=HEADERS)
    if status != 202:
        assert (status, document["code"]) == (503, "storage_unavailable")
        return False
    manifest = await read_manifest(serving.store, UUID(document["uploadId"]))
    assert manifest is not None
    stored = await serving.store.get(manifest.key)
    assert hashlib.sha256(stored).hexdigest() == hashlib.sha256(content).hexdigest() == manifest.sha256
    return True


async def test_no_part_gets_the_bytes_of_another(small: Settings, bucket: Bucket) -> None:
    contents = [os.urandom(size) for size in SIZES]
    async with serve_behind(small, s3_max_attempts=12) as (serving, proxy):
        # In the middle of parts, at a place that moves.
        await proxy.reset_after(PART // 2 + 4321, "up", times=8)
        assert all(await asyncio.gather(*(upload(serving, content) for content in contents)))
        assert serving.uploads.budget.used_bytes == 0
        assert len(serving.uploads.buffers) == 0


async def test_nor_those_of_an_upload_that_was_given_up(small: Settings, bucket: Bucket) -> None:
    contents = [os.urandom(size) for size in SIZES]
    async with serve_behind(small, s3_max_attempts=1) as (serving, proxy):
        # Often: aiohttp itself repeats a request whose connection was an old one.
        await proxy.reset_after(PART // 2 + 4321, "up", times=1000)
        stored = await asyncio.gather(*(upload(serving, content) for content in contents))
        assert not all(stored)
        await proxy.restore()
        await until(lambda: serving.uploads.leftovers.count == 0)
        assert all(await asyncio.gather(*(upload(serving, content) for content in contents)))
        for key in await asyncio.to_thread(bucket.keys):
            await serving.store.delete(key)
        await check_nothing_left(serving, bucket)
