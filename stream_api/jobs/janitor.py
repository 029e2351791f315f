"""The janitor: removes what is left over in the bucket, and uploads whose time is over.

It may meet anything at any moment, and two may be at work at once, for their lock is one in Redis.

- **An upload under way** looks different each time a part of it is stored, and cannot stand still for `orphan_seconds`
  (`Settings` sees to that). Its multipart uploads are judged together, by their key: one whose creation's answer was
  lost has no parts and never gets any, while the other, of the same key, lives.
- **An API that was frozen** between completing the object and writing the manifest finds its data gone: a commit that
  took long looks for it. Frozen before completing, it finds no multipart upload.
- **A retry at the moment of expiry**: both are a compare-and-set of the row, so one of them does nothing. From
  `expired` nothing leads back, and only then is anything removed.
- **Two janitors**: each removal can be done again. Only a manifest could be another's the second time, where an
  `Idempotency-Key` brings its id back; so its time is compared, and the lock must still be ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Final
from uuid import UUID

import structlog
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.flow.rounds import keep_doing
from stream_api.flow.tasks import for_each
from stream_api.jobs.lock import Held, one_round
from stream_api.jobs.sightings import Sightings
from stream_api.jobs.unreadable import passing_over
from stream_api.ledger.expiry import Expired, Expiry
from stream_api.ledger.rejects import RejectsLedger
from stream_api.ledger.uploads import Ledger
from stream_api.status.store import StatusStore
from stream_api.storage.cleanup import clean_up_ended
from stream_api.storage.keys import UPLOADS_PREFIX, manifest_key, parse_upload_key, rejects_prefix
from stream_api.storage.manifests import Manifest, clear_pending, list_pending, mark_pending, read_manifest
from stream_api.storage.objects import ObjectStore

log = structlog.get_logger()

#: Uploads that are asked for together.
_PAGE: Final = 500
#: Requests to S3 at once, of one round.
_AT_ONCE: Final = 8


@dataclass(slots=True)
class Tidied:
    """What one round has removed: multipart uploads (their keys), data, rejects, markers, and expired uploads.

    :param ended: completed or cancelled uploads whose data was still there.
    :param staging: staging tables that nobody wants any more.
    """

    multiparts: int = 0
    data: int = 0
    rejects: int = 0
    markers: int = 0
    ended: int = 0
    expired: int = 0
    staging: int = 0


class _LockLost(Exception):
    """Another may have begun a round."""


def orphans(keys: Iterable[str], manifest: Manifest | None) -> list[str]:
    """Of the objects of one upload, those that nobody knows: data that is not what the manifest names.

    Rejects are known by the ledger, which is asked for them. Whoever writes something else below `uploads/<id>/` says
    here by what it is known; until then it is left alone.
    """
    named = None if manifest is None else manifest.key
    return [key for key in keys if key != named and (parsed := parse_upload_key(key)) is not None and parsed.is_data]


class Janitor:
    """Runs beside a worker. Of all workers one does a round at a time.

    :param redis: of `open_redis`; for the lock and the sightings. Stays the caller's.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: ObjectStore,
        ledger: Ledger,
        rejects: RejectsLedger,
        expiry: Expiry,
        statuses: StatusStore,
        redis: Redis,
    ) -> None:
        self._store: Final = store
        self._ledger: Final = ledger
        self._rejects: Final = rejects
        self._expiry: Final = expiry
        self._statuses: Final = statuses
        self._redis: Final = redis
        self._interval_seconds: Final = settings.janitor_seconds
        self._retention_seconds: Final = settings.retention_seconds
        self._orphan_seconds: Final = settings.orphan_seconds

    async def run(self) -> None:
        """Do rounds until cancelled. A store or database that is away ends a round, never the janitor."""
        await keep_doing(
            self.tidy,
            interval_seconds=self._interval_seconds,
            interrupted="janitor.interrupted",
            crashed="janitor.crashed",
        )

    async def tidy(self, *, now: float | None = None) -> Tidied | None:
        """Do one round.

        :param now: the time of its sightings, in tests.
        :returns: what was removed; `None` when another worker does a round, or did one less than an interval ago.
        :raises Failure: of the storage, the database or Redis. The next round goes on.
        """
        async with one_round(self._redis, "janitor", interval_seconds=self._interval_seconds) as held:
            if held is None:
                return None
            done = Tidied()
            try:
                await self._expire(held, done)
                done.staging = await self._expiry.drop_staging()
                sightings = Sightings(
                    self._redis, orphan_seconds=self._orphan_seconds, interval_seconds=self._interval_seconds
                )
                known = _Known(self._ledger, self._rejects)
                await _BucketRound(self._store, known, sightings, held, done).tidy(now)
            except _LockLost:
                log.info("janitor.lock_lost")
            finally:
                log.info("janitor.round", **asdict(done))
        return done

    async def _expire(self, held: Held, done: Tidied) -> None:
        """Let uploads expire whose time is over, and remove what is left of them and of those before."""
        seen = 0

        async def one(upload: Expired) -> None:
            await self._remove(upload, held)
            done.expired += 1

        while True:
            # Those that were passed over stay, and are the oldest.
            expired = await self._expiry.expire(
                retention_seconds=self._retention_seconds, limit=_PAGE, skip=seen - done.expired
            )
            await for_each(expired, passing_over(one), at_once=_AT_ONCE)
            seen += len(expired)
            if len(expired) < _PAGE:
                return

    async def _remove(self, expired: Expired, held: Held) -> None:
        """Remove an expired upload. The row, by which a load or a retry would be refused, goes last.

        The data goes before the manifest that names it, and the manifest before the marker by which it is found.
        """
        upload_id = expired.upload_id
        await _check(held)
        manifest = await read_manifest(self._store, upload_id)
        if manifest is None or manifest.created_at == expired.created_at:
            if manifest is not None:
                await self._store.delete(manifest.key)
                # Rejects have keys that do not come back; where a manifest is missing, they went before it.
                async with aclosing(self._store.list_keys(rejects_prefix(upload_id))) as keys:
                    async for key in keys:
                        await self._store.delete(key)
                await _check(held)
                await self._store.delete(manifest_key(upload_id))
            await _unmark(self._store, upload_id)
            await self._forget_status(upload_id)
        await self._expiry.forget(expired)
        log.info("janitor.upload_expired", upload_id=str(upload_id))

    async def _forget_status(self, upload_id: UUID) -> None:
        try:
            await self._statuses.remove(upload_id)
        except Failure as failure:  # a copy, which ends by itself
            log.info("janitor.status_kept", upload_id=str(upload_id), detail=failure.detail)


@dataclass(frozen=True, slots=True)
class _Known:
    """What PostgreSQL knows."""

    ledger: Ledger
    rejects: RejectsLedger


class _BucketRound:
    """One round over what lies in the bucket."""

    def __init__(self, store: ObjectStore, known: _Known, sightings: Sightings, held: Held, done: Tidied) -> None:
        self._store: Final = store
        self._ledger: Final = known.ledger
        self._known_rejects: Final = known.rejects
        self._sightings: Final = sightings
        self._held: Final = held
        self._done: Final = done

    async def tidy(self, now: float | None) -> None:
        await self._sightings.begin(now)
        complete = False
        try:
            await self._multiparts()
            await self._objects()
            await self._markers()
            complete = True
        finally:
            await self._sightings.end(complete=complete)

    async def _multiparts(self) -> None:
        found = sorted(await self._store.list_multiparts(""))
        by_key = {
            key: [multipart_id for _, multipart_id in group]
            for key, group in groupby(found, key=lambda each: each[0])
            if (parsed := parse_upload_key(key)) is not None and parsed.is_data
        }

        async def one(key: str) -> None:
            await _check(self._held)
            parts = [(each, await self._store.parts_seen(key, each)) for each in by_key[key]]
            looks = hashlib.sha256(repr(parts).encode()).hexdigest()
            if self._sightings.is_due(f"multipart:{key}", looks):
                for multipart_id in by_key[key]:
                    await self._store.abort_multipart(key, multipart_id)
                self._done.multiparts += 1
                log.info("janitor.multipart_aborted", key=key)

        await for_each(by_key, one, at_once=_AT_ONCE)

    async def _objects(self) -> None:
        """Data and rejects of all uploads.

        Before the markers: a late manifest that finds its data is to find its marker too.
        """
        page: dict[UUID, list[str]] = {}
        rejects: list[tuple[UUID, str]] = []
        async with aclosing(self._store.list_keys(UPLOADS_PREFIX)) as keys:
            async for key in keys:
                parsed = parse_upload_key(key)
                if parsed is not None and parsed.is_rejects:
                    rejects.append((parsed.upload_id, key))
                    if len(rejects) == _PAGE:
                        await self._rejects(rejects)
                        rejects = []
                if parsed is None or not parsed.is_data:
                    continue
                if len(page) == _PAGE and parsed.upload_id not in page:
                    await self._data(page)
                    page = {}
                page.setdefault(parsed.upload_id, []).append(key)
        await self._data(page)
        await self._rejects(rejects)

    async def _rejects(self, page: list[tuple[UUID, str]]) -> None:
        """Rejects that no committed row names.

        They are stored before their transaction commits, so one may be under way; but not for longer than a session may
        be idle in a transaction, which is less than `orphan_seconds`.
        """
        by_upload = {
            upload_id: [key for _, key in group] for upload_id, group in groupby(page, key=lambda each: each[0])
        }

        async def one(upload_id: UUID) -> None:
            await _check(self._held)
            for key in sorted(await self._known_rejects.unknown(upload_id, by_upload[upload_id])):
                if self._sightings.is_due(f"rejects:{key}") and await self._known_rejects.unknown(upload_id, [key]):
                    await self._store.delete(key)
                    self._done.rejects += 1
                    log.info("janitor.rejects_removed", key=key)

        await for_each(by_upload, one, at_once=_AT_ONCE)

    async def _data(self, page: dict[UUID, list[str]]) -> None:
        states = await self._ledger.states(page) if page else {}

        async def one(upload_id: UUID) -> None:
            await _check(self._held)
            manifest = await read_manifest(self._store, upload_id)
            known = states.get(upload_id)
            if (
                manifest is not None
                and manifest.key in page[upload_id]
                and known is not None
                and known.state in {"completed", "cancelled"}
                and known.created_at == manifest.created_at
            ):
                await clean_up_ended(self._store, manifest, state=known.state, has_ended=self._ledger.has_ended)
                self._done.ended += 1
                log.info("janitor.ended_upload_cleaned", upload_id=str(upload_id), state=known.state)
            for key in orphans(page[upload_id], manifest):
                if self._sightings.is_due(f"data:{key}") and orphans(
                    [key], await read_manifest(self._store, upload_id)
                ):
                    await self._store.delete(key)
                    self._done.data += 1
                    log.info("janitor.data_removed", key=key)

        await for_each(page, passing_over(one), at_once=_AT_ONCE)

    async def _markers(self) -> None:
        page: list[UUID] = []
        async with aclosing(list_pending(self._store)) as uploads:
            async for upload_id in uploads:
                page.append(upload_id)
                if len(page) == _PAGE:
                    await self._unstored(page)
                    page = []
        await self._unstored(page)

    async def _unstored(self, page: list[UUID]) -> None:
        states = await self._ledger.states(page) if page else {}

        async def one(upload_id: UUID) -> None:
            await _check(self._held)
            if await read_manifest(self._store, upload_id) is not None:
                return
            if self._sightings.is_due(f"marker:{upload_id}") and await _unmark(self._store, upload_id):
                self._done.markers += 1
                log.info("janitor.marker_removed", upload_id=str(upload_id))

        # A row implies a manifest, until it has expired.
        rowless = [upload_id for upload_id in page if upload_id not in states or states[upload_id].state == "expired"]
        await for_each(rowless, passing_over(one), at_once=_AT_ONCE)


async def _unmark(store: ObjectStore, upload_id: UUID) -> bool:
    """Remove a marker without a manifest; `False` if one has come: an id can come back, and gets its marker back."""
    await clear_pending(store, upload_id)
    if await read_manifest(store, upload_id) is None:
        return True
    await mark_pending(store, upload_id)
    return False


async def _check(held: Held) -> None:
    if not await held.keep():
        raise _LockLost
