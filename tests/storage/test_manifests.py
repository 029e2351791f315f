from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec
import pytest

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.storage.errors import AlreadyExists
from stream_api.storage.keys import manifest_key
from stream_api.storage.manifests import (
    Manifest,
    clear_pending,
    has_data,
    list_pending,
    mark_pending,
    read_manifest,
    write_manifest,
)
from stream_api.storage.objects import ObjectStore, open_object_store
from tests.support.manifests import make_manifest


def manifest_of(upload_id: UUID) -> Manifest:
    return make_manifest(
        upload_id, etag='"abc"', size_bytes=5, file_name="größe.csv", fields={"a": "b"}, created_at=datetime.now(UTC)
    )


async def test_a_manifest_is_written_once(settings_each_store: Settings) -> None:
    upload_id = uuid4()
    manifest = manifest_of(upload_id)
    async with open_object_store(settings_each_store) as store:
        assert await read_manifest(store, upload_id) is None
        await write_manifest(store, manifest)
        assert await read_manifest(store, upload_id) == manifest
        with pytest.raises(AlreadyExists):
            await write_manifest(store, msgspec.structs.replace(manifest, size_bytes=6))
        assert await read_manifest(store, upload_id) == manifest
        document = msgspec.json.decode(await store.get(manifest_key(upload_id)))
        assert document["uploadId"] == str(upload_id)
        assert document["version"] == 1


async def test_a_manifest_in_the_way_that_goes_meanwhile(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_id = uuid4()
    async with open_object_store(settings) as store:
        await write_manifest(store, manifest_of(upload_id))

        async def gone(_: str) -> bytes:
            raise Failure("data_gone", "There is no such object in the object storage.")

        monkeypatch.setattr(store, "get", gone)
        with pytest.raises(Failure) as failed:
            await write_manifest(store, manifest_of(upload_id))
        # Not that there is no data, which would be for good: the next try can write it.
        assert (failed.value.code, failed.value.transient) == ("storage_unavailable", True)


async def test_whether_there_is_data(settings_each_store: Settings) -> None:
    manifest = manifest_of(uuid4())
    async with open_object_store(settings_each_store) as store:
        assert not await has_data(store, manifest)
        await store.put(manifest.key, b"hello")
        assert await has_data(store, manifest)


async def pending(store: ObjectStore) -> set[UUID]:
    return {upload_id async for upload_id in list_pending(store)}


async def test_markers(settings_each_store: Settings) -> None:
    first, second = uuid4(), uuid4()
    async with open_object_store(settings_each_store) as store:
        await mark_pending(store, first)
        await mark_pending(store, second)
        await store.put("pending/something-else", b"")
        assert await pending(store) == {first, second}
        await clear_pending(store, first)
        await clear_pending(store, first)
        assert await pending(store) == {second}
