"""The web application with everything behind it, on a real socket."""

from __future__ import annotations

import asyncio
import functools
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from redis.asyncio import Redis
from yarl import URL

from stream_api.config import Settings
from stream_api.datasets.cache import open_table_cache
from stream_api.datasets.dataset import Datasets, built_in
from stream_api.dialects.detection import Beginning
from stream_api.dialects.dialect import Dialect
from stream_api.flow.budget import ByteBudget
from stream_api.flow.stopping import Stopping
from stream_api.flow.tasks import cancel_and_wait
from stream_api.http.app import make_runner, make_web_app
from stream_api.http.collaborators import Collaborators
from stream_api.http.listener import BoundedSite, open_listener
from stream_api.jobs.queue import LoadQueue
from stream_api.jobs.signals import Signals
from stream_api.ledger.outbox import Outbox
from stream_api.ledger.pool import open_pool
from stream_api.ledger.rejects import RejectsLedger
from stream_api.ledger.rows import UploadRow
from stream_api.ledger.uploads import Ledger
from stream_api.load.answering import RejectsReader
from stream_api.load.header import Limits
from stream_api.load.looking import look_up
from stream_api.load.precheck import Precheck
from stream_api.options import Options
from stream_api.status.connection import open_redis
from stream_api.status.store import StatusStore
from stream_api.storage.cleanup import clean_up_ended
from stream_api.storage.manifests import Manifest, Manifests
from stream_api.storage.objects import ObjectStore, open_object_store
from stream_api.upload.amending import amend
from stream_api.upload.claims import KeyClaims
from stream_api.upload.leftovers import open_leftovers
from stream_api.upload.pipeline import Check, Uploads, receive_upload


@dataclass(frozen=True)
class Serving:
    """A running service without a worker."""

    url: str
    port: int
    client: aiohttp.ClientSession
    store: ObjectStore
    ledger: Ledger
    statuses: StatusStore
    manifests: Manifests
    queue: LoadQueue
    redis: Redis
    uploads: Uploads
    site: BoundedSite
    signals: Signals
    stopping: Stopping

    async def post(self, data: Any, *, query: str = "", **options: Any) -> tuple[int, dict[str, Any]]:
        """Upload something; status and document of the answer.

        :param query: as it is to be sent, with its question mark.
        """
        # aiohttp warns of large bytes, not of a stream of them.
        body = io.BytesIO(data) if isinstance(data, bytes) else data
        url = URL(f"{self.url}/upload{query}", encoded=True)
        async with self.client.post(url, data=body, **options) as answer:
            return answer.status, await answer.json(content_type=None)

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and document of an answer."""
        async with self.client.get(self.url + path) as answer:
            return answer.status, await answer.json(content_type=None)


async def _take_anything(beginning: Beginning, *, dialect: Dialect, dataset: str, options: Options) -> None:
    pass


@asynccontextmanager
async def serve(
    settings: Settings,
    *,
    max_file_bytes: int | None = None,
    checked: bool = False,
    datasets: Datasets | None = None,
    checks: Mapping[str, Callable[[], Awaitable[object]]] | None = None,
) -> AsyncIterator[Serving]:
    """Start the application on a free port of the loopback.

    :param checked: headers have to fit their tables. Most tests are of bytes that are no CSV.
    :param datasets: those that there are; without, the built-in one.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_object_store(settings))
        leftovers = await stack.enter_async_context(open_leftovers())
        pool = await open_pool(settings)
        stack.callback(pool.terminate)
        redis = open_redis(settings)
        stack.push_async_callback(redis.aclose)
        queue = LoadQueue(settings)
        stack.push_async_callback(queue.close)
        statuses = StatusStore(redis, ttl_seconds=settings.status_ttl_seconds)
        ledger = Ledger(pool)
        manifests = Manifests(store)
        signals, stopping = Signals(redis), Stopping()
        receiving = asyncio.create_task(signals.run())
        stack.push_async_callback(cancel_and_wait, receiving)

        async def announce(row: UploadRow) -> None:
            await signals.tell_ended(row.id)

        async def clean_up(manifest: Manifest, row: UploadRow) -> None:
            await clean_up_ended(store, manifest, state=row.state, has_ended=ledger.has_ended)

        limit = settings.max_file_bytes if max_file_bytes is None else max_file_bytes
        datasets = built_in(settings.target_table) if datasets is None else datasets
        check: Check = _take_anything
        if checked:
            threads = stack.enter_context(ThreadPoolExecutor(1))
            tables = await stack.enter_async_context(open_table_cache(functools.partial(look_up, pool)))

            async def run_in_thread(function: Callable[..., Any], /, *arguments: Any) -> Any:
                return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

            check = Precheck(tables, datasets, Limits.of(settings), run_in_thread)
        uploads = Uploads(
            settings,
            store,
            ByteBudget(settings.upload_budget_bytes),
            leftovers,
            KeyClaims(redis),
            ledger.is_expired,
            limit,
            datasets,
            check,
        )
        app = make_web_app(
            Collaborators(
                receive=functools.partial(receive_upload, uploads),
                amend=functools.partial(amend, store, settings),
                statuses=statuses,
                rows=ledger,
                queue=queue,
                manifests=manifests,
                rejects=RejectsReader(store, RejectsLedger(pool)),
                send_webhook=Outbox(pool).rearm,
                signals=signals,
                announce=announce,
                clean_up=clean_up,
                datasets=datasets,
                max_wait_seconds=settings.max_wait_seconds,
                checks={"storage": store.check, "database": ledger.check} if checks is None else checks,
                stopping=stopping,
            ),
            content_length_limit=limit,
        )
        runner = make_runner(app, shutdown_timeout_seconds=2.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        listener = open_listener(settings.host, 0, receive_buffer_bytes=settings.socket_receive_buffer_bytes)
        site = BoundedSite(runner, listener, max_connections=settings.max_connections)
        await site.start()
        client = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=50), read_bufsize=2**16)
        )
        yield Serving(
            site.name,
            site.port,
            client,
            store,
            ledger,
            statuses,
            manifests,
            queue,
            redis,
            uploads,
            site,
            signals,
            stopping,
        )
