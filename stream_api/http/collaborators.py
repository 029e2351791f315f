"""What the handlers work with, handed in by `app.py`; each is found in the application under its key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from aiohttp import web

from stream_api.datasets.dataset import Datasets
from stream_api.flow.stopping import Stopping
from stream_api.ledger.rows import Intake, UploadRow
from stream_api.status.record import StatusRecord
from stream_api.storage.manifests import Manifest
from stream_api.upload.amending import Amended
from stream_api.upload.body import Incoming
from stream_api.upload.replay import Received


class Receive(Protocol):
    """Takes in one upload: `upload.pipeline.receive_upload` with its first argument given."""

    async def __call__(self, incoming: Incoming, /) -> Received: ...  # noqa: D102


class Amend(Protocol):
    """Takes what a retry says: `upload.amending.amend` with its first arguments given."""

    async def __call__(self, manifest: Manifest, parameters: Iterable[tuple[str, str]], /) -> Amended: ...  # noqa: D102


class Statuses(Protocol):
    """Status records in Redis (`status.store.StatusStore`). Both raise `Failure` `queue_unavailable`."""

    async def write(self, record: StatusRecord, /) -> None: ...  # noqa: D102

    async def read(self, upload_id: UUID, /) -> StatusRecord | None: ...  # noqa: D102


class Rows(Protocol):
    """Rows of uploads in Postgres (`ledger.uploads.Ledger`)."""

    async def get(self, upload_id: UUID, /) -> UploadRow | None: ...  # noqa: D102

    async def has_ended(self, upload_id: UUID, /) -> bool: ...  # noqa: D102

    async def reopen(  # noqa: D102
        self, upload_id: UUID, /, *, run: int | None = None, amendments: str | None = None, of_plan: Sequence[str] = ()
    ) -> UploadRow: ...

    async def cancel(self, intake: Intake, /) -> UploadRow: ...  # noqa: D102


class Queue(Protocol):
    """The queue of loads (`jobs.queue.LoadQueue`)."""

    async def enqueue(self, upload_id: UUID, /) -> None: ...  # noqa: D102


class Signals(Protocol):
    """Signals to and from other processes (`jobs.signals.Signals`)."""

    async def tell_cancelled(self, upload_id: UUID, /) -> None: ...  # noqa: D102

    def waiting(self, upload_id: UUID, /) -> AbstractContextManager[asyncio.Event]: ...  # noqa: D102


class Rejects(Protocol):
    """The rejects that committed segments name (`load.answering.RejectsReader`). Both raise `Failure`."""

    def as_csv(self, upload_id: UUID, /) -> AsyncGenerator[bytes, None]: ...  # noqa: D102

    def original(self, upload_id: UUID, /) -> AsyncGenerator[bytes, None]: ...  # noqa: D102


class Manifests(Protocol):
    """Manifests and markers in S3."""

    async def read(self, upload_id: UUID, /) -> Manifest | None: ...  # noqa: D102

    async def has_data(self, manifest: Manifest, /) -> bool: ...  # noqa: D102

    async def mark_pending(self, upload_id: UUID, /) -> None: ...  # noqa: D102

    async def clear_pending(self, upload_id: UUID, /) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Collaborators:
    """Everything that the handlers need.

    :param send_webhook: begins the delivery of an ended upload's webhook anew (`Services.send_webhook_again`).
    :param signals: of the ends of uploads, and to the workers of those that are cancelled.
    :param announce: tells whoever waits for it that an upload has ended. Raises nothing.
    :param clean_up: removes what an upload in this end state needs no more; raises `Failure` of the store or ledger.
    :param datasets: those that uploads may name.
    :param max_wait_seconds: the longest that a request waits for the end of an upload.
    :param checks: for `/readyz`: the name of each service and what raises when it cannot be used.
    :param stopping: the end of the process: what waits for long is answered then.
    """

    receive: Receive
    amend: Amend
    statuses: Statuses
    rows: Rows
    queue: Queue
    manifests: Manifests
    rejects: Rejects
    send_webhook: Callable[[UUID], Awaitable[UploadRow]]
    signals: Signals
    announce: Callable[[UploadRow], Awaitable[None]]
    clean_up: Callable[[Manifest, UploadRow], Awaitable[None]]
    datasets: Datasets
    max_wait_seconds: float
    checks: Mapping[str, Callable[[], Awaitable[object]]]
    stopping: Stopping


COLLABORATORS: Final = web.AppKey("collaborators", Collaborators)
