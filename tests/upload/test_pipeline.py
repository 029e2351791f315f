from __future__ import annotations

import asyncio
import hashlib
import io
import os
from uuid import UUID

import aiohttp
import pytest

from stream_api.config import KIB, Settings
from stream_api.storage.manifests import list_pending, read_manifest
from tests.conftest import Bucket
from tests.http.serving import Serving, serve
from tests.support.settings import change
from tests.upload.conftest import PART


def form(*fields: tuple[str, str | bytes]) -> aiohttp.FormData:
    data = aiohttp.FormData()
    for name, value in fields:
        if isinstance(value, bytes):
            data.add_field(name, io.BytesIO(value), filename="rows.csv", content_type="text/csv")
        else:
            data.add_field(name, value)
    return data


async def check_stored(serving: Serving, document: dict[str, str], content: bytes) -> None:
    upload_id = UUID(document["uploadId"])
    assert upload_id.version == 7
    manifest = await read_manifest(serving.store, upload_id)
    assert manifest is not None
    assert await serving.store.get(manifest.key) == content
    info = await serving.store.stat(manifest.key)
    assert (info.size_bytes, info.etag) == (manifest.size_bytes, manifest.etag)
    assert manifest.sha256 == hashlib.sha256(content).hexdigest()
    assert manifest.file_name == "rows.csv"
    assert manifest.content_type == "text/csv"
    assert [pending async for pending in list_pending(serving.store)] == [upload_id]
    assert (serving.uploads.budget.used_bytes, serving.uploads.budget.waiting) == (0, 0)
    assert serving.uploads.active == {}


@pytest.mark.parametrize(
    "size", [1, 100 * KIB, PART - 1, PART, PART + 1, 2 * PART, 4 * PART + 12345], ids=lambda size: f"{size}"
)
async def test_what_was_sent_is_what_is_stored(
    small_each_store: Settings, bucket_each_store: Bucket, size: int
) -> None:
    content = os.urandom(size)
    async with serve(small_each_store) as serving:
        status, document = await serving.post(form(("a", "b"), ("file", content), ("callbackUrl", "https://x.test/y")))
        assert status == 202
        assert document["status"] == "uploaded"
        await check_stored(serving, document, content)
        manifest = await read_manifest(serving.store, UUID(document["uploadId"]))
        assert manifest is not None
        assert manifest.fields == {"a": "b"}
        assert manifest.callback_url == "https://x.test/y"
        # A single put has the MD5 of the content for its ETag; a multipart upload has the number of parts in it.
        assert ("-" in manifest.etag) == (size > PART)
        assert serving.uploads.budget.peak_bytes <= small_each_store.upload_budget_bytes
    assert bucket_each_store.open_multipart_uploads() == []
    assert len(bucket_each_store.keys()) == 3


async def test_many_uploads_share_a_budget_of_three_parts(small: Settings) -> None:
    contents = [os.urandom(PART + 1000 if number % 5 else 2 * PART) for number in range(50)]
    async with serve(change(small, max_connections=60)) as serving:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=50)) as client:

            async def upload(content: bytes) -> UUID:
                async with client.post(f"{serving.url}/upload", data=form(("file", content))) as answer:
                    assert answer.status == 202
                    return UUID((await answer.json())["uploadId"])

            ids = await asyncio.gather(*(upload(content) for content in contents))
        for upload_id, content in zip(ids, contents, strict=True):
            manifest = await read_manifest(serving.store, upload_id)
            assert manifest is not None
            assert manifest.sha256 == hashlib.sha256(content).hexdigest()
            assert (await serving.store.stat(manifest.key)).size_bytes == len(content)
        budget = serving.uploads.budget
        assert budget.peak_bytes == 3 * PART
        assert (budget.used_bytes, budget.waiting) == (0, 0)
