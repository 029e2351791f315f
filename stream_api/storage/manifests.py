"""The manifest: what was taken in, written once; and the markers of uploads that have not reached an end state."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Final, Self
from uuid import UUID

import msgspec

from stream_api.dialects.dialect import Dialect
from stream_api.errors import Failure
from stream_api.options import Options
from stream_api.storage.keys import PENDING_PREFIX, manifest_key, pending_key, upload_of_pending_key
from stream_api.storage.objects import ObjectStore


class Amendments(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What retries have said anew about an upload, each whole, in place of what its manifest says.

    The manifest is never rewritten: this lies in the upload's row.
    """

    fields: dict[str, str]
    dialect: Dialect
    options: Options
    max_rejects: str | None

    def encode(self) -> str:
        """As JSON."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, data: str) -> Self:
        """From JSON."""
        return msgspec.json.decode(data, type=cls)


class Manifest(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What is known of an upload once it is stored.

    :param key: where the data lies; `etag` is that of the data, quoted as the store gave it.
    :param size_bytes: size of the data as stored.
    :param sha256: of the data, in hexadecimal.
    :param file_name: as the client named it; not to be used as a path.
    :param callback_url: where the webhook goes, if anywhere.
    :param fields: text form fields as they came, but for those with a place of their own.
    :param dialect: as found and given; the default is what manifests without one mean.
    :param segment_bytes: where the segments of this upload are cut, whatever the setting says later.
    :param max_rejects: as the client gave it, `100` or `5%`; `None` where the setting decides.
    :param options: what else the client asked of the load.
    :param created_at: when the manifest was written, in UTC.
    :param version: of this format.
    """

    upload_id: UUID
    key: str
    etag: str
    size_bytes: int
    sha256: str
    file_name: str | None
    content_type: str
    dataset: str
    callback_url: str | None
    fields: dict[str, str]
    segment_bytes: int
    created_at: datetime
    dialect: Dialect = Dialect()
    max_rejects: str | None = None
    options: Options = Options()
    version: int = 1

    def amended(self, amendments: str | None) -> Manifest:
        """With what retries have said anew.

        :param amendments: `Amendments` as JSON, as the upload's row has them.
        """
        if amendments is None:
            return self
        said = Amendments.decode(amendments)
        return msgspec.structs.replace(
            self, fields=said.fields, dialect=said.dialect, options=said.options, max_rejects=said.max_rejects
        )


async def write_manifest(store: ObjectStore, manifest: Manifest) -> None:
    """Write a manifest; from then on the upload counts as stored.

    :raises AlreadyExists: if the upload has one: a manifest is never replaced.
    :raises Failure: as `ObjectStore.put`; `storage_unavailable` also if one was in the way and has gone.
    """
    data = msgspec.json.encode(manifest)
    try:
        await store.put(manifest_key(manifest.upload_id), data, content_type="application/json", if_absent=True)
    except Failure as failure:
        if failure.code != "data_gone":
            raise
        raise Failure("storage_unavailable", "Another upload with this id was just removed: try again.") from failure


async def read_manifest(store: ObjectStore, upload_id: UUID) -> Manifest | None:
    """The manifest of an upload, or `None` if there is none.

    :raises Failure: as `ObjectStore.get`; `manifest_unreadable`.
    """
    try:
        data = await store.get(manifest_key(upload_id))
    except Failure as failure:
        if failure.code == "data_gone":
            return None
        raise
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as exc:
        detail = (
            f"The manifest of upload {upload_id} cannot be read. Was it written by a later version of the service? "
            "Nothing of the upload is touched until it can be read."
        )
        raise Failure("manifest_unreadable", detail, uploadId=str(upload_id)) from exc


async def has_data(store: ObjectStore, manifest: Manifest) -> bool:
    """Whether the data of an upload is there.

    :raises Failure: as `ObjectStore.stat`.
    """
    try:
        await store.stat(manifest.key)
    except Failure as failure:
        if failure.code == "data_gone":
            return False
        raise
    return True


async def mark_pending(store: ObjectStore, upload_id: UUID) -> None:
    """Put the marker by which the reconciler finds an upload that has no job."""
    await store.put(pending_key(upload_id), b"")


async def clear_pending(store: ObjectStore, upload_id: UUID) -> None:
    """Remove the marker; one that is absent is fine."""
    await store.delete(pending_key(upload_id))


async def list_pending(store: ObjectStore) -> AsyncGenerator[UUID, None]:
    """The uploads that have a marker; keys that are not ours are passed over."""
    async with aclosing(store.list_keys(PENDING_PREFIX)) as keys:
        async for key in keys:
            upload_id = upload_of_pending_key(key)
            if upload_id is not None:
                yield upload_id


class Manifests:
    """The manifests and markers of one store, for whoever is not to know the store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store: Final = store

    async def read(self, upload_id: UUID, /) -> Manifest | None:
        """As `read_manifest`."""
        return await read_manifest(self._store, upload_id)

    async def is_stored(self, upload_id: UUID, /) -> bool:
        """Whether there is a manifest."""
        return await read_manifest(self._store, upload_id) is not None

    async def has_data(self, manifest: Manifest, /) -> bool:
        """As the function of that name."""
        return await has_data(self._store, manifest)

    def list_pending(self) -> AsyncGenerator[UUID, None]:
        """As the function of that name."""
        return list_pending(self._store)

    async def mark_pending(self, upload_id: UUID, /) -> None:
        """As the function of that name."""
        await mark_pending(self._store, upload_id)

    async def clear_pending(self, upload_id: UUID, /) -> None:
        """As the function of that name."""
        await clear_pending(self._store, upload_id)
