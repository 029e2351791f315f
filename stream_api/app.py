"""The composition root: settings in, a running service out."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from stream_api.config import Settings
from stream_api.jobs.queue import LoadQueue
from stream_api.jobs.worker import LoadWorker
from stream_api.ledger.pool import Pool, open_pool
from stream_api.ledger.uploads import Ledger
from stream_api.load.loader import Loader
from stream_api.load.reporting import Reporter
from stream_api.memory import check_memory
from stream_api.status.connection import open_redis
from stream_api.status.store import StatusStore
from stream_api.storage.objects import ObjectStore, open_object_store

log = structlog.get_logger()
Result = TypeVar("Result")

#: How long a thread may keep the GIL while another wants it. With Python's own 5 ms the event loop lags by as much
#: (measured: 6 ms, against 1.5 to 1.8 ms; see FACTS).
_SWITCH_INTERVAL_SECONDS = 0.0005


@dataclass(frozen=True, slots=True)
class Services:
    """The stores behind the service; none of them has to be there when the process starts."""

    settings: Settings
    store: ObjectStore
    pool: Pool
    ledger: Ledger
    statuses: StatusStore
    queue: LoadQueue


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Clients for S3, Postgres and Redis, which connect when they are first used."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_object_store(settings))
        pool = await open_pool(settings)
        stack.push_async_callback(_close_pool, pool)
        redis = open_redis(settings)
        stack.push_async_callback(redis.aclose)
        queue = LoadQueue(settings)
        stack.push_async_callback(queue.close)
        statuses = StatusStore(redis, ttl_seconds=settings.status_ttl_seconds)
        yield Services(settings, store, pool, Ledger(pool), statuses, queue)


@asynccontextmanager
async def run_worker(services: Services) -> AsyncIterator[LoadWorker]:
    """A worker that takes jobs while the body runs; on leaving, running loads are handed back."""
    settings = services.settings
    with ThreadPoolExecutor(settings.worker_threads, thread_name_prefix="load") as threads:

        async def run_in_thread(function: Callable[..., Result], /, *args: Any) -> Result:
            return await asyncio.get_running_loop().run_in_executor(threads, function, *args)

        loader = Loader(
            settings=settings,
            store=services.store,
            pool=services.pool,
            ledger=services.ledger,
            reporter=Reporter(services.statuses),
            run_in_thread=run_in_thread,
        )
        worker = LoadWorker(settings, loader.load)
        await worker.start()
        try:
            yield worker
        finally:
            await worker.stop()


async def work(settings: Settings) -> None:
    """A worker alone, until SIGINT or SIGTERM."""
    _prepare(settings, api=False, worker=True)
    async with open_services(settings) as services, run_worker(services):
        log.info("worker.started")
        await _until_told_to_stop()
        log.info("worker.stopping")


def _prepare(settings: Settings, *, api: bool, worker: bool) -> None:
    need = check_memory(settings, api=api, worker=worker)
    log.info("memory.planned", total_bytes=need.total)
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)


async def _until_told_to_stop() -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    await stopping.wait()


async def _close_pool(pool: Pool) -> None:
    try:
        async with asyncio.timeout(2):
            await pool.close()
    except TimeoutError:
        pool.terminate()
