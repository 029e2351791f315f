"""The worker that drives deliveries of webhooks; what is to be done is the row's to say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

from stream_api.config import Settings
from stream_api.jobs.queue import WEBHOOKS, round_of_job, upload_of_job
from stream_api.jobs.worker import Backoff, JobWorker


def webhook_worker(
    settings: Settings, deliver: Callable[[UUID, int], Awaitable[float | None]], *, backoff: Backoff | None = None
) -> JobWorker:
    """A worker that delivers webhooks, `webhook_concurrency` at once.

    :param deliver: makes one try for the delivery of that upload and round; see `JobWorker`.
    """

    async def run(job_id: str) -> float | None:
        return await deliver(upload_of_job(job_id), round_of_job(job_id))

    return JobWorker(settings, WEBHOOKS, run, concurrency=settings.webhook_concurrency, backoff=backoff)
