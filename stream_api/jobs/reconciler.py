"""The reconciler: finds uploads that are stored but have no job, so that Redis may lose everything at any time.

The markers in S3 name what waits, whether it has a row yet or not. A marker can get lost in the moment of a retry; so
the rows that are in no end state are looked at too.

A round asks for a page of uploads at once: one query for their states, one exchange with Redis for their jobs. Only of
what has neither a row in an end state nor a job is the manifest read, a few at a time.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

import structlog
from redis.asyncio import Redis

from stream_api.flow.rounds import keep_doing
from stream_api.flow.tasks import for_each
from stream_api.jobs.lock import one_round
from stream_api.jobs.unreadable import passing_over
from stream_api.ledger.rows import Known
from stream_api.storage.manifests import Manifest

log = structlog.get_logger()

#: Uploads that are asked for together.
_PAGE: Final = 500
#: Requests to S3 or Redis at once, of one round.
_AT_ONCE: Final = 8


class PendingUploads(Protocol):
    """The markers `pending/<id>`: there from before an upload is stored until after its end state."""

    def list_pending(self) -> AsyncGenerator[UUID, None]:
        """Every upload with a marker."""

    async def mark_pending(self, upload_id: UUID, /) -> None:
        """Set the marker."""

    async def read(self, upload_id: UUID, /) -> Manifest | None:
        """The manifest; `None` while the upload is still being received, or when it was given up."""


class LoadJobs(Protocol):
    """The queue of loads."""

    async def without_job(self, upload_ids: Sequence[UUID], /) -> list[UUID]:
        """Those of the uploads that have no job."""

    async def ensure(self, upload_id: UUID, /) -> None:
        """Give an upload a job where it has none."""


@dataclass(slots=True)
class Round:
    """What one round has found.

    :param enqueued: stored uploads that had no job and have one now.
    :param cleaned: ended uploads that were left with their marker: what is to go after their end has gone.
    :param unstored: markers without a manifest, left alone: the upload is under way, or it is the janitor's.
    """

    enqueued: int = 0
    cleaned: int = 0
    unstored: int = 0


class Reconciler:
    """Runs beside a worker. Of all workers one does a round at a time.

    :param pending: the markers.
    :param states: what PostgreSQL knows of a page of uploads (`Ledger.states`).
    :param open_uploads: the uploads, so many at most, that have a row in no end state (`Ledger.open_uploads`).
    :param jobs: the queue of loads.
    :param clean_up: does the end of a load once more: removes what an upload in that end state needs no more.
    :param redis: of `open_redis`; for the lock. Stays the caller's.
    :param interval_seconds: between two rounds, over all workers.
    """

    def __init__(
        self,
        *,
        pending: PendingUploads,
        states: Callable[[Collection[UUID]], Awaitable[Mapping[UUID, Known]]],
        open_uploads: Callable[[int], Awaitable[Sequence[UUID]]],
        jobs: LoadJobs,
        clean_up: Callable[[Manifest, str], Awaitable[None]],
        redis: Redis,
        interval_seconds: float,
    ) -> None:
        self._pending = pending
        self._states = states
        self._open_uploads = open_uploads
        self._jobs = jobs
        self._clean_up = clean_up
        self._redis = redis
        self._interval_seconds = interval_seconds

    async def run(self) -> None:
        """Do rounds until cancelled. A store or database that is away ends a round, never the reconciler."""
        await keep_doing(
            self.reconcile,
            interval_seconds=self._interval_seconds,
            interrupted="reconciler.interrupted",
            crashed="reconciler.crashed",
        )

    async def reconcile(self) -> Round | None:
        """Do one round.

        :returns: what was found; `None` when another worker does a round, or did one less than an interval ago.
        :raises Failure: of the storage, the database or the queue. What was enqueued until then stays.
        """
        async with one_round(self._redis, "reconciler", interval_seconds=self._interval_seconds) as held:
            if held is None:
                return None
            found = Round()
            page: list[UUID] = []
            async with aclosing(self._pending.list_pending()) as uploads:
                async for upload_id in uploads:
                    page.append(upload_id)
                    if len(page) == _PAGE:
                        await self._reconcile(page, found)
                        page = []
                        if not await held.keep():
                            break
            await self._reconcile(page, found)
            await self._mark(await self._open_uploads(_PAGE), found)
        if found.enqueued or found.cleaned:
            log.info("reconciler.round", enqueued=found.enqueued, cleaned=found.cleaned, unstored=found.unstored)
        return found

    async def _reconcile(self, page: list[UUID], found: Round) -> None:
        if not page:
            return
        states = await self._states(page)
        jobless = set(await self._jobs.without_job(page))

        async def one(upload_id: UUID) -> None:
            known = states.get(upload_id)
            if known is not None and not known.ended:
                # A row implies a manifest.
                await self._enqueue(upload_id, found)
                return
            manifest = await self._pending.read(upload_id)
            if manifest is None:
                found.unstored += 1
            elif known is None or known.created_at != manifest.created_at:
                # With an Idempotency-Key an id can come back; the row is of the upload that has expired.
                await self._enqueue(upload_id, found)
            elif known.state != "expired":
                # Its worker was killed before it had cleaned up. (What is expired is the janitor's.)
                await self._clean_up(manifest, known.state)
                found.cleaned += 1

        # While a job for it lasts, an upload is in good hands, also one that has just ended.
        await for_each([each for each in page if each in jobless], passing_over(one), at_once=_AT_ONCE)

    async def _mark(self, page: Sequence[UUID], found: Round) -> None:
        """Give those a marker and a job that have lost both: what has a marker has a job by now."""

        async def one(upload_id: UUID) -> None:
            log.warning("reconciler.marker_was_missing", upload_id=str(upload_id))
            await self._pending.mark_pending(upload_id)
            await self._enqueue(upload_id, found)

        if page:
            await for_each(await self._jobs.without_job(page), one, at_once=_AT_ONCE)

    async def _enqueue(self, upload_id: UUID, found: Round) -> None:
        await self._jobs.ensure(upload_id)
        found.enqueued += 1
