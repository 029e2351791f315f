"""What may go from the store once PostgreSQL has recorded an end state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from stream_api.storage.manifests import Manifest, clear_pending, mark_pending
from stream_api.storage.objects import ObjectStore

#: End states after which the data is of no use; a failed upload keeps it for a retry.
_DATA_DONE: Final = frozenset({"completed", "cancelled"})


async def clean_up_ended(
    store: ObjectStore, manifest: Manifest, *, state: str, has_ended: Callable[[UUID], Awaitable[bool]]
) -> None:
    """Remove the data of an upload that needs it no more, and its marker. Can be done again, by anybody.

    :param state: the end state, as PostgreSQL has recorded it.
    :param has_ended: whether PostgreSQL has the upload in an end state now.
    :raises Failure: as `ObjectStore`, and what `has_ended` raises; the marker is then still there, or is not needed.
    """
    if state in _DATA_DONE:
        await store.delete(manifest.key)
    await clear_pending(store, manifest.upload_id)
    # A retry marks first and reopens then; where it came in between, its mark has just been removed.
    if not await has_ended(manifest.upload_id):
        await mark_pending(store, manifest.upload_id)
