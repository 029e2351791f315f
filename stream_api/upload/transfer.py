"""The S3 side of one upload: parts, object, marker and manifest, and the removal of them all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar
from uuid import UUID

import structlog

from stream_api.errors import Failure
from stream_api.flow.tasks import cancel_and_wait
from stream_api.storage.errors import AlreadyExists
from stream_api.storage.keys import data_key, manifest_key
from stream_api.storage.manifests import (
    Manifest,
    clear_pending,
    has_data,
    mark_pending,
    read_manifest,
    write_manifest,
)
from stream_api.storage.objects import DATA_TYPE, ObjectStore
from stream_api.upload.buffers import Buffers
from stream_api.upload.parts import Part

T = TypeVar("T")
log = structlog.stdlib.get_logger(__name__)

#: A commit that took longer looks whether its data is still there. Far shorter than the time after which the janitor
#: takes data without a manifest for an orphan.
SLOW_COMMIT_SECONDS: Final = 60.0


class Transfer:
    """Sends one upload's data. After a failure, `discard` removes whatever may have been stored.

    Requests that change something run in tasks of their own, so that a cancelled upload does not leave behind a
    request of which nobody knows whether the store will still carry it out: `discard` first waits for them.

    With a derived id, other transfers may have the same manifest and marker, at the same time and anywhere. Then only
    the data is one's own, and what is said of the manifest stays true: from the moment that it can be read, others
    answer with it.

    :param buffers: those of the parts.
    :param derived: the id comes from an `Idempotency-Key`.
    """

    def __init__(
        self,
        store: ObjectStore,
        upload_id: UUID,
        buffers: Buffers,
        *,
        derived: bool = False,
        slow_commit_seconds: float = SLOW_COMMIT_SECONDS,
    ) -> None:
        self._store: Final = store
        self._buffers: Final = buffers
        self._derived: Final = derived
        self._slow_commit_seconds: Final = slow_commit_seconds
        self.upload_id: Final = upload_id
        self.key: Final = data_key(upload_id)
        self._requests: Final[set[asyncio.Task[Any]]] = set()
        self._multipart: asyncio.Task[str] | None = None
        self._etags: Final[dict[int, str]] = {}
        self._object_tried = self._marker_tried = self._manifest_tried = self._data_gone = False

    @property
    def touched(self) -> bool:
        """Something may have been stored."""
        return self._multipart is not None or self._object_tried

    async def send(self, part: Part) -> None:
        """Send a part of a file of several, and give its room back when S3 has acknowledged it.

        :raises Failure: as `ObjectStore.upload_part`.
        """
        if self._multipart is None:
            self._multipart = self._start(self._store.create_multipart(self.key, content_type=DATA_TYPE))
        try:
            multipart_id = await asyncio.shield(self._multipart)
        except BaseException:
            part.lease.release()
            raise
        request = self._start(self._store.upload_part(self.key, multipart_id, part.number, part.content))
        # Also when nobody waits for it any more: the data is held until then.
        request.add_done_callback(lambda _: self._used_up(part))
        self._etags[part.number] = await asyncio.shield(request)

    async def commit(self, only: Part | None, manifest_of: Callable[[str, str], Manifest]) -> Manifest:
        """Data, then marker, then manifest: with the last the upload is stored.

        Until the manifest is there, the data is an orphan and the marker is idle, for the janitor to remove: the data
        after two sightings far apart, the marker too. A process can be frozen for as long as that at any point here,
        so a slow commit looks afterwards whether its data is there, and marks again. With a derived id it always marks
        again: the marker may have been removed for a manifest before ours. Whoever removes a marker looks for a
        manifest afterwards, so that in every order of these steps the marker is there at the end.

        :param only: the part of a file that fits into one, which becomes a single put.
        :param manifest_of: gets key and ETag of the data.
        :raises AlreadyExists: with a derived id, if another upload has it. `discard` then removes our data only.
        :raises Failure: as `ObjectStore`; nothing can then be said of what is stored. `storage_unavailable` also if
            the data has gone meanwhile.
        """
        # Before the request: the object may be there long before we hear of it.
        begun = _Moment()
        self._object_tried = True
        if only is not None:
            etag = await self._store.put(self.key, only.content, content_type=DATA_TYPE)
        else:
            multipart_id = await self._multipart_id()
            etag = await self._store.complete_multipart(self.key, multipart_id, sorted(self._etags.items()))
        self._marker_tried = True
        await mark_pending(self._store, self.upload_id)
        manifest = manifest_of(self.key, etag)
        self._manifest_tried = True
        try:
            await write_manifest(self._store, manifest)
        except AlreadyExists:
            self._manifest_tried = False  # that ours is not there is certain
            raise
        except Failure:
            # All its answers may have been lost, and a worker may be at the load already.
            if not await self._is_ours():
                raise
        slow = begun.age_seconds > self._slow_commit_seconds
        if slow or self._derived:
            await mark_pending(self._store, self.upload_id)
        if slow and not await has_data(self._store, manifest):
            log.warning("upload.data_gone", upload_id=str(self.upload_id), key=self.key)
            self._data_gone = True
            detail = "Storing took so long that what was stored of the file has been removed meanwhile: send it again."
            raise Failure("storage_unavailable", detail)
        return manifest

    @property
    def may_be_stored(self) -> bool:
        """The commit has failed, and yet the manifest may be there."""
        return self._manifest_tried and not self._data_gone

    async def settle(self, timeout_seconds: float) -> None:
        """Wait for requests under way, and end those that take longer."""
        if self._requests:
            await asyncio.wait(self._requests, timeout=timeout_seconds)
            await cancel_and_wait(*self._requests)

    async def discard(self) -> None:
        """Remove whatever may have been stored. Can be repeated; call `settle` first.

        If our manifest is there after all (the answers to its put were lost), the upload is stored: a worker may be at
        its load, and another request may have been answered with it. Nothing is removed then. With a derived id the
        marker stays in any case, for it may be that of another one's manifest: one without a manifest is left to the
        janitor.

        :raises Failure: as `ObjectStore`; some of it may still be there.
        """
        if self._manifest_tried and await self._is_ours():
            if not self._data_gone:
                await mark_pending(self._store, self.upload_id)
                log.info("upload.stored_after_all", upload_id=str(self.upload_id), key=self.key)
                return
            await self._store.delete(manifest_key(self.upload_id))
        if self._marker_tried and not self._derived:
            await clear_pending(self._store, self.upload_id)
        if self._multipart is not None:
            known = self._multipart
            created = known.done() and not known.cancelled() and known.exception() is None
            await self._store.abort_multipart(self.key, known.result() if created else None)
        if self._object_tried:
            await self._store.delete(self.key)
        if self._manifest_tried and await self._is_ours():
            # A put that we had given up arrived late, and says that there is data.
            await self._store.delete(manifest_key(self.upload_id))

    async def _is_ours(self) -> bool:
        manifest = await read_manifest(self._store, self.upload_id)
        return manifest is not None and manifest.key == self.key

    async def _multipart_id(self) -> str:
        if self._multipart is None:
            msg = "a file of several parts has a multipart upload"
            raise RuntimeError(msg)
        return await asyncio.shield(self._multipart)

    def _used_up(self, part: Part) -> None:
        self._buffers.give_back(part.content)
        part.lease.release()

    def _start(self, request: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(request)
        self._requests.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._requests.discard(task)
        if not task.cancelled():
            # Whoever waited for it has the error; if nobody did, it was part of an upload that failed anyhow.
            task.exception()


class _Moment:
    """A point in time. Its age counts what the process slept through, and what the machine did."""

    def __init__(self) -> None:
        self._monotonic, self._wall = time.monotonic(), time.time()

    @property
    def age_seconds(self) -> float:
        # The one stands still while a machine is suspended, the other can be set back.
        return max(time.monotonic() - self._monotonic, time.time() - self._wall)
