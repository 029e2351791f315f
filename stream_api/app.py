"""The composition root: settings in, a running service out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import structlog
from redis.asyncio import Redis

from stream_api.config import Settings
from stream_api.datasets.cache import open_table_cache
from stream_api.datasets.dataset import Datasets
from stream_api.datasets.file import datasets_of
from stream_api.errors import Failure
from stream_api.flow.budget import ByteBudget
from stream_api.flow.stopping import Stopping
from stream_api.flow.tasks import cancel_and_wait
from stream_api.http.app import make_runner, make_web_app
from stream_api.http.collaborators import Collaborators
from stream_api.http.listener import BoundedSite, open_listener
from stream_api.http.stopping import UnderWay
from stream_api.jobs.janitor import Janitor
from stream_api.jobs.queue import LoadQueue, WebhookQueue
from stream_api.jobs.reconciler import Reconciler
from stream_api.jobs.signals import Signals
from stream_api.jobs.webhooks import webhook_worker
from stream_api.jobs.worker import LoadWorker
from stream_api.ledger.expiry import Expiry
from stream_api.ledger.outbox import Outbox
from stream_api.ledger.pool import Pool, open_pool
from stream_api.ledger.rejects import RejectsLedger
from stream_api.ledger.rows import UploadRow
from stream_api.ledger.uploads import Ledger
from stream_api.load.answering import RejectsReader
from stream_api.load.encoder import BINARY
from stream_api.load.header import Limits
from stream_api.load.loader import Loader
from stream_api.load.looking import look_up, misfits
from stream_api.load.precheck import Precheck
from stream_api.load.reader import RunInThread
from stream_api.load.reporting import Reporter
from stream_api.process import prepare, stopping_on_signals
from stream_api.status.connection import open_redis
from stream_api.status.store import StatusStore
from stream_api.storage.cleanup import clean_up_ended
from stream_api.storage.manifests import Manifest, Manifests
from stream_api.storage.objects import ObjectStore, open_object_store
from stream_api.upload.amending import amend
from stream_api.upload.claims import KeyClaims
from stream_api.upload.leftovers import open_leftovers
from stream_api.upload.pipeline import Uploads, receive_upload
from stream_api.webhooks.delivery import Deliverer
from stream_api.webhooks.sender import Resolver, Sender
from stream_api.webhooks.sweep import keep_sweeping

log = structlog.get_logger()
Result = TypeVar("Result")

#: Of the time that requests get when the process stops, the end, in which those that are aborted clean up. The half of
#: it where there is not so much.
_ABORT_SECONDS = 6.0
#: A load that has ended waits so long at most for its webhook to get a job; the sweep makes up for what fails.
_ENQUEUE_WEBHOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Services:
    """The stores behind the service; none of them has to be there when the process starts."""

    settings: Settings
    store: ObjectStore
    pool: Pool
    ledger: Ledger
    statuses: StatusStore
    queue: LoadQueue
    redis: Redis
    outbox: Outbox
    webhooks: WebhookQueue
    signals: Signals
    datasets: Datasets

    @property
    def checks(self) -> Mapping[str, Callable[[], Awaitable[object]]]:
        """What has to answer for the service to be of use, by its name."""
        return {"storage": self.store.check, "database": self.ledger.check, "queue": self.statuses.check}

    async def look(self) -> None:
        """Say what cannot be used at the start: everything goes on by itself once it can."""
        for name, check in self.checks.items():
            try:
                await check()
            except Failure as failure:
                log.warning("start.cannot_use", service=name, code=failure.code, detail=failure.detail)
        if self.settings.datasets is not None:
            for name, misfit in (await misfits(self.pool, self.datasets)).items():
                log.warning("start.dataset_misfit", dataset=name, code=misfit.code, detail=misfit.detail)

    async def announce(self, row: UploadRow) -> None:
        """Tell whoever waits for it that an upload has ended. Raises nothing; may be called again for the same end."""
        log.info("upload.ended", upload_id=str(row.id), state=row.state, run=row.run)
        await asyncio.gather(self.signals.tell_ended(row.id), self._drive_webhook(row))

    async def send_webhook_again(self, upload_id: UUID) -> UploadRow:
        """Begin the delivery of an ended upload's webhook anew.

        :raises Failure: as `Outbox.rearm`.
        """
        row = await self.outbox.rearm(upload_id)
        await self._drive_webhook(row)
        return row

    async def _drive_webhook(self, row: UploadRow) -> None:
        if row.webhook_state != "pending":
            return
        try:
            async with asyncio.timeout(_ENQUEUE_WEBHOOK_SECONDS):
                await self.webhooks.ensure(row.id, row.webhook_round)
        except (Failure, TimeoutError) as error:
            log.warning("webhooks.not_enqueued", upload_id=str(row.id), error=f"{type(error).__name__}: {error}")

    async def clean_up(self, manifest: Manifest, row: UploadRow) -> None:
        """Remove what an upload in this end state needs no more.

        :raises Failure: of the store or the ledger; it can be done again.
        """
        await self.clean_up_state(manifest, row.state)

    async def clean_up_state(self, manifest: Manifest, state: str) -> None:
        """As `clean_up`, for whoever has not the whole row."""
        await clean_up_ended(self.store, manifest, state=state, has_ended=self.ledger.has_ended)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Clients for S3, Postgres and Redis, which connect when they are first used.

    :raises DatasetsInvalid: see `datasets_of`.
    """
    datasets = datasets_of(settings)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_object_store(settings))
        pool = await open_pool(settings)
        stack.push_async_callback(_close_pool, pool)
        redis = open_redis(settings)
        stack.push_async_callback(redis.aclose)
        queue = LoadQueue(settings)
        stack.push_async_callback(queue.close)
        statuses = StatusStore(redis, ttl_seconds=settings.status_ttl_seconds)
        webhooks = WebhookQueue(settings)
        stack.push_async_callback(webhooks.close)
        signals = Signals(redis)
        receiving = asyncio.create_task(signals.run(), name="signals")
        stack.push_async_callback(cancel_and_wait, receiving)
        yield Services(
            settings,
            store,
            pool,
            Ledger(pool),
            statuses,
            queue,
            redis,
            Outbox(pool),
            webhooks,
            signals,
            datasets,
        )


@asynccontextmanager
async def run_webhooks(services: Services) -> AsyncIterator[None]:
    """Webhooks are delivered while the body runs; on leaving, what is under way is left to other workers."""
    settings = services.settings
    resolver = Resolver()
    reporter = Reporter(services.statuses)
    deliverer = Deliverer(settings, services.outbox, Sender(settings, resolver), reporter.bring_up_to)
    worker = webhook_worker(settings, deliverer.deliver)
    await worker.start()
    sweeping = asyncio.create_task(
        keep_sweeping(services.outbox, services.webhooks.ensure, interval_seconds=settings.webhook_sweep_seconds),
        name="webhook-sweep",
    )
    try:
        yield
    finally:
        await asyncio.gather(cancel_and_wait(sweeping), worker.stop())
        await resolver.close()


@asynccontextmanager
async def run_worker(services: Services) -> AsyncIterator[LoadWorker]:
    """A worker that takes jobs of both queues while the body runs; on leaving, what runs is handed back."""
    settings = services.settings
    if not BINARY:
        log.warning("worker.without_binary", detail="There is no pgpq here: rows go as CSV, more slowly.")
    with ThreadPoolExecutor(settings.worker_threads, thread_name_prefix="load") as threads:
        loader = Loader(
            settings=settings,
            store=services.store,
            pool=services.pool,
            ledger=services.ledger,
            reporter=Reporter(services.statuses),
            datasets=services.datasets,
            run_in_thread=_running_in(threads),
            announce=services.announce,
        )
        reconciler = Reconciler(
            pending=Manifests(services.store),
            states=services.ledger.states,
            open_uploads=services.ledger.open_uploads,
            jobs=services.queue,
            clean_up=services.clean_up_state,
            redis=services.redis,
            interval_seconds=settings.reconcile_seconds,
        )
        janitor = Janitor(
            settings,
            store=services.store,
            ledger=services.ledger,
            rejects=RejectsLedger(services.pool),
            expiry=Expiry(services.pool),
            statuses=services.statuses,
            redis=services.redis,
        )
        worker = LoadWorker(settings, loader.load)
        await worker.start()
        webhooks = AsyncExitStack()
        await webhooks.enter_async_context(run_webhooks(services))
        reconciling = asyncio.create_task(reconciler.run(), name="reconciler")
        tidying = asyncio.create_task(janitor.run(), name="janitor")
        try:
            with services.signals.cancelling(worker.cancel):
                yield worker
        finally:
            await asyncio.gather(cancel_and_wait(reconciling, tidying), worker.stop(), webhooks.aclose())


def _running_in(threads: ThreadPoolExecutor) -> RunInThread:
    async def run_in_thread(function: Callable[..., Result], /, *args: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(threads, function, *args)

    return run_in_thread


@asynccontextmanager
async def open_precheck(services: Services) -> AsyncIterator[Precheck]:
    """What judges headers while uploads come."""
    with ThreadPoolExecutor(1, thread_name_prefix="precheck") as threads:
        async with open_table_cache(partial(look_up, services.pool)) as tables:
            yield Precheck(tables, services.datasets, Limits.of(services.settings), _running_in(threads))


@asynccontextmanager
async def run_api(services: Services, stopping: Stopping) -> AsyncIterator[BoundedSite]:
    """The HTTP API, which listens while the body runs; on leaving, requests under way may end.

    :param stopping: what handlers see of the process's end; when it has begun, the API goes on accepting for
        `shutdown_delay_seconds`.
    """
    settings = services.settings
    listener = open_listener(settings.host, settings.port, receive_buffer_bytes=settings.socket_receive_buffer_bytes)
    async with open_leftovers() as leftovers, open_precheck(services) as check:
        uploads = Uploads(
            settings,
            services.store,
            ByteBudget(settings.upload_budget_bytes),
            leftovers,
            KeyClaims(services.redis),
            services.ledger.is_expired,
            max_file_bytes=settings.max_file_bytes,
            datasets=services.datasets,
            check=check,
        )
        collaborators = Collaborators(
            receive=partial(receive_upload, uploads),
            amend=partial(amend, services.store, settings),
            statuses=services.statuses,
            rows=services.ledger,
            queue=services.queue,
            manifests=Manifests(services.store),
            rejects=RejectsReader(services.store, RejectsLedger(services.pool)),
            send_webhook=services.send_webhook_again,
            signals=services.signals,
            announce=services.announce,
            clean_up=services.clean_up,
            datasets=services.datasets,
            max_wait_seconds=settings.max_wait_seconds,
            checks=services.checks,
            stopping=stopping,
        )
        under_way = UnderWay()
        limit = settings.max_file_bytes + settings.max_field_bytes
        app = make_web_app(collaborators, content_length_limit=limit, under_way=under_way)
        abort_seconds = min(_ABORT_SECONDS, settings.shutdown_timeout_seconds / 2)
        # aiohttp waits so long twice: for handlers to end, and again when it has cut off what they read.
        runner = make_runner(app, shutdown_timeout_seconds=abort_seconds / 2)
        await runner.setup()
        site = BoundedSite(runner, listener, max_connections=settings.max_connections)
        try:
            await site.start()
            yield site
            if stopping.begun:
                await asyncio.sleep(settings.shutdown_delay_seconds)
        finally:
            await site.stop()
            if runner.server is not None:
                runner.server.pre_shutdown()  # closes the connections without a request
            aborted = await under_way.finish(seconds=settings.shutdown_timeout_seconds - abort_seconds)
            if aborted:
                log.warning("serve.requests_aborted", count=aborted)
            await runner.cleanup()


async def serve(settings: Settings, *, worker: bool) -> None:
    """The HTTP API, and a worker beside it, until SIGINT or SIGTERM.

    :raises OSError: the address cannot be listened on.
    :raises DatasetsInvalid: the file of datasets is not right.
    :raises MemoryLimitTooLow: the process may have less memory than it needs.
    """
    stopping = stopping_on_signals()
    settings = prepare(settings, api=True, worker=worker)
    async with open_services(settings) as services:
        api, working = AsyncExitStack(), AsyncExitStack()
        try:
            site = await api.enter_async_context(run_api(services, stopping))
            if worker:
                await working.enter_async_context(run_worker(services))
            log.info("serve.listening", url=site.name, worker=worker)
            async with _looking(services):
                await stopping.wait()
            log.info("serve.stopping", detail="Requests under way get their time; SIGINT stops now.")
        finally:
            # Loads are handed back at once, while requests under way get their time.
            await asyncio.gather(working.aclose(), api.aclose())


async def work(settings: Settings) -> None:
    """A worker alone, until SIGINT or SIGTERM.

    :raises DatasetsInvalid, MemoryLimitTooLow: as `serve`.
    """
    stopping = stopping_on_signals()
    settings = prepare(settings, api=False, worker=True)
    async with open_services(settings) as services, run_worker(services):
        log.info("worker.started")
        async with _looking(services):
            await stopping.wait()
        log.info("worker.stopping")


@asynccontextmanager
async def _looking(services: Services) -> AsyncIterator[None]:
    looking = asyncio.create_task(services.look(), name="look")
    try:
        yield
    finally:
        await cancel_and_wait(looking)


async def _close_pool(pool: Pool) -> None:
    try:
        async with asyncio.timeout(2):
            await pool.close()
    except TimeoutError:
        pool.terminate()
