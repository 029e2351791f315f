"""The worker: takes jobs from a queue and runs them, for as long as the process lives."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

import bullmq
import structlog
from bullmq.custom_errors import DelayedError
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from stream_api.config import Settings
from stream_api.errors import Failure, RunLost
from stream_api.flow.jitter import full_jitter
from stream_api.jobs.queue import LOADS, PREFIX, LoadQueue, upload_of_job

log = structlog.get_logger()

#: The blocking read of an idle worker takes up to 10 s, and a socket that times out earlier makes the worker deaf.
_SOCKET_TIMEOUT_SECONDS: Final = 15
#: Crashes of a worker under one job before BullMQ gives the job up (and the reconciler brings it back).
_MAX_STALLED_COUNT: Final = 10
#: Between two attempts to reach a Redis that is away.
_RECONNECT_SECONDS: Final = 1.0
#: How long work that is to stop may take for that; after it the job is handed back all the same, and the fence of
#: PostgreSQL keeps what is left of it from having an effect. Below the lease, so that the job is still ours to give.
_CANCEL_SECONDS: Final = 3.0
#: For one command to Redis while stopping.
_HAND_BACK_SECONDS: Final = 2.0
#: Between two attempts of a load to get a slot of its dataset: from, to.
_BUSY_SECONDS: Final = (0.5, 1.5)
#: For the end of BullMQ's own tasks.
_CLOSE_SECONDS: Final = 5.0
#: The same error of Redis is logged once in this time.
_LOG_AGAIN_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delays between attempts: exponential, with full jitter.

    :param base_seconds: the upper bound of the first delay.
    :param cap_seconds: the upper bound of all. A load goes on at most this long after an outage has ended.
    """

    base_seconds: float = 0.5
    cap_seconds: float = 15.0

    def delay_seconds(self, attempt: int) -> float:
        """The delay after attempt number `attempt`, from 1."""
        return full_jitter(attempt, base_seconds=self.base_seconds, cap_seconds=self.cap_seconds)


Reason = Literal["shutdown", "lease lost", "cancelled"]


@dataclass(eq=False)
class _Running:
    """A job under way in this process."""

    job_id: str
    task: asyncio.Task[float | None]
    #: Why it is being cancelled, if it is.
    reason: Reason | None = None
    #: Has a result when it was told to stop and had its time for that.
    overdue: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    def cancel(self, reason: Reason) -> None:
        """Ask it to stop; the first reason stands, but for a lost lease, after which nothing is ours to hand back."""
        if self.reason is None:
            self.task.cancel(reason)
            asyncio.get_running_loop().call_later(_CANCEL_SECONDS, self._let_go)
        if self.reason != "lease lost":
            self.reason = reason

    def _let_go(self) -> None:
        if not self.overdue.done():
            self.overdue.set_result(None)


class JobWorker:
    """Runs the jobs of one queue, some at once.

    A job that is cut off by the death of this process is taken over by another worker after about
    `job_lease_seconds`. Redis may be away at the start and at any time later: the worker keeps trying.

    :param queue_name: of the queue.
    :param run: does the whole job, by its id. What it gives back or raises decides what becomes of that: `None` or
        `RunLost` ends it quietly; a number has it run again after so many seconds; a transient `Failure` delays it, as
        often as it takes; anything else uses up one of its four attempts. It is cancelled when the lease is lost or
        the worker stops, and should then end soon.
    :param concurrency: jobs at once.
    :param backoff: of delays.
    :param ended: called with the id of each job that has left the queue. Raises nothing.
    """

    def __init__(
        self,
        settings: Settings,
        queue_name: str,
        run: Callable[[str], Awaitable[float | None]],
        *,
        concurrency: int,
        backoff: Backoff | None = None,
        ended: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._queue_name = queue_name
        self._run = run
        self._concurrency = concurrency
        self._backoff = backoff or Backoff()
        self._on_end = ended
        self._running: set[_Running] = set()
        self._after: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._worker: Any = None
        self._logged: dict[str, float] = {}

    @property
    def running(self) -> list[UUID]:
        """The uploads that this worker has a job of."""
        return [upload_of_job(job.job_id) for job in self._running]

    async def start(self) -> None:
        """Begin to take jobs, in the background. Does not wait for Redis."""
        if self._supervisor is not None:
            msg = "the worker was started before"
            raise RuntimeError(msg)
        self._supervisor = asyncio.create_task(self._supervise(), name=f"worker-of-{self._queue_name}")

    async def stop(self) -> None:
        """Take no more jobs, cancel the running ones, and hand them to other workers at once.

        Ends within about 15 s, whatever state Redis and the jobs are in.
        """
        self._stopping.set()
        if self._worker is not None:
            # Before anything is handed back: BullMQ's idle wait would take it again, and nobody would run it.
            _take_no_more(self._worker)
        for running in self._running:
            running.cancel("shutdown")
        if self._supervisor is not None:
            await self._supervisor
        await asyncio.gather(*self._after, return_exceptions=True)

    # -- BullMQ's worker, and its life ---------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while not self._stopping.is_set():
            worker = self._worker = self._make_worker()
            serving = asyncio.create_task(self._serve(worker), name="bullmq-worker")
            stopping = asyncio.create_task(self._stopping.wait())
            try:
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.cancel()
                await self._close(worker, serving)
            with suppress(TimeoutError):
                async with asyncio.timeout(_RECONNECT_SECONDS):
                    await self._stopping.wait()

    def _make_worker(self) -> Any:
        lease_ms = int(self._settings.job_lease_seconds * 1000)
        worker = bullmq.Worker(
            self._queue_name,
            self._process,
            {
                "autorun": False,
                "prefix": PREFIX,
                # A URL and not a client: the blocking connection must be another one than that of the commands.
                "connection": _worker_url(self._settings.redis_url.get_secret_value()),
                "concurrency": self._concurrency,
                "lockDuration": lease_ms,
                "stalledInterval": min(2000, lease_ms // 3),
                "maxStalledCount": _MAX_STALLED_COUNT,
                "runRetryDelay": int(_RECONNECT_SECONDS * 1000),
                "settings": {"backoffStrategy": self._backoff_strategy},
            },
        )
        for connection in (worker.redisConnection.conn, worker.blockingRedisConnection.conn):
            # BullMQ has every command tried 20 times with delays up to 20 s: a lock would not be renewed long after
            # Redis is back.
            connection.set_retry(Retry(ExponentialBackoff(cap=0.5, base=0.05), 3))
        worker.on("lockRenewalFailed", self._lease_lost)
        worker.on("completed", self._ended)
        worker.on("failed", self._ended)
        worker.on("error", self._log_error)
        return worker

    async def _serve(self, worker: Any) -> None:
        try:
            # Without knowing the version BullMQ rounds every delay up to whole seconds, and the jitter is gone.
            await worker.blockingRedisConnection.getRedisVersion()
            await worker.run()
        except (RedisError, OSError) as error:
            self._log_error(error)
        except Exception:
            log.exception("jobs.worker_crashed")

    async def _close(self, worker: Any, serving: asyncio.Task[None]) -> None:
        """End BullMQ's worker with everything it started, in bounded time."""
        closing = asyncio.create_task(end_bullmq(worker), name="bullmq-close")
        # The jobs come first: they need some time to stop, and their locks are renewed as long as BullMQ lives.
        deadline = time.monotonic() + _CANCEL_SECONDS + _HAND_BACK_SECONDS
        while not (closing.done() and serving.done()) and time.monotonic() < deadline:
            await asyncio.wait({closing, serving}, timeout=0.1)
            # BullMQ cancels the idle wait once, and redis-py's time-outs (asyncio.wait_for, on Python 3.11) can swallow
            # that.
            if worker.waiting is not None:
                worker.waiting.cancel()
        for _ in range(3):
            if closing.done() and serving.done():
                break
            worker.cancelProcessing()
            serving.cancel()
            closing.cancel()
            await asyncio.wait({closing, serving}, timeout=_CLOSE_SECONDS / 3)
        for task in (closing, serving, *worker.processing):
            if not task.done():
                log.error("jobs.task_left_behind", task=task.get_name())
            elif not task.cancelled() and (error := task.exception()) is not None:
                self._log_error(error)

    # -- one job ---------------------------------------------------------------------------------------------------

    async def _process(self, job: Any, token: str) -> None:
        """BullMQ's processor. Never lets a `CancelledError` out that is not its own: that would end the worker."""
        worker = self._worker
        await self._outlast_earlier(worker, job, token)
        running = _Running(job.id, asyncio.ensure_future(self._call(job.id)))
        self._running.add(running)
        if self._stopping.is_set():
            running.cancel("shutdown")
        try:
            await asyncio.wait((running.task, running.overdue), return_when=asyncio.FIRST_COMPLETED)
            if not running.task.done():
                log.error("jobs.does_not_stop", **self._named(running.job_id), reason=running.reason)
            await self._settle(running, job, token)
        finally:
            if not running.task.done():
                running.task.cancel()
            running.task.add_done_callback(_retrieve)
            self._running.discard(running)
            running.finished.set()

    async def _call(self, job_id: str) -> float | None:
        return await self._run(job_id)

    async def _settle(self, running: _Running, job: Any, token: str) -> None:
        """Decide what becomes of the job: return to complete it, raise to fail or delay it."""
        stopped = not running.task.done() or running.task.cancelled()
        error = asyncio.CancelledError() if stopped else running.task.exception()
        again_seconds = running.task.result() if error is None else None
        if again_seconds is not None:
            await self._delay(job, token, again_seconds)
            raise DelayedError
        if error is None or isinstance(error, RunLost):
            return
        if running.reason == "lease lost":
            # The job is somebody else's by now; nothing of it is ours to move.
            log.info("jobs.lease_lost", **self._named(running.job_id))
            raise DelayedError from error
        if running.reason == "cancelled":
            log.info("jobs.cancelled", **self._named(running.job_id))
            return
        if running.reason == "shutdown":
            await self._delay(job, token, 0.0)
            log.info("jobs.handed_back", **self._named(running.job_id))
            raise DelayedError from error
        if isinstance(error, Failure) and error.transient:
            if error.code == "dataset_busy":
                # Nothing is out of order: a slot can be free at any moment, and the next load should not miss it long.
                seconds = random.uniform(*_BUSY_SECONDS)  # noqa: S311
            else:
                seconds = self._backoff.delay_seconds(max(1, job.attemptsStarted))
            log.info("jobs.delayed", **self._named(running.job_id), code=error.code, delay_seconds=round(seconds, 3))
            await self._delay(job, token, seconds)
            raise DelayedError from error
        log.error("jobs.attempt_failed", **self._named(running.job_id), attempt=job.attemptsMade + 1, exc_info=error)
        if isinstance(error, Exception):
            raise error
        msg = "the job was cancelled, and not by the worker"
        raise RuntimeError(msg) from error

    async def _delay(self, job: Any, token: str, seconds: float) -> None:
        """Move the job from this worker to the delayed ones. Uses up no attempt."""
        try:
            async with asyncio.timeout(_HAND_BACK_SECONDS):
                # By the clock of Redis, and so not by `job.moveToDelayed`: another worker, whose clock may differ from
                # ours, is to wait until then.
                now_seconds, micros = await self._worker.redisConnection.conn.time()
                now_ms = now_seconds * 1000 + micros // 1000
                await job.backend.moveToDelayed(job.id, now_ms, int(seconds * 1000), token, {"skipAttempt": True})
        except (RedisError, OSError, TypeError) as error:
            # Redis is away, or (a TypeError, that is how BullMQ says it) the lease is lost: either way the job is taken
            # over when its lease has ended.
            log.warning("jobs.not_moved", **self._named(job.id), error=f"{type(error).__name__}: {error}")

    async def _outlast_earlier(self, worker: Any, job: Any, token: str) -> None:
        """Wait for the end of an earlier run of the same job in this process, whose lease was lost.

        BullMQ keeps its locks by the job's id: the earlier one's end makes it forget the lock of the later one.
        """
        earlier = [running for running in self._running if running.job_id == job.id]
        for running in earlier:
            running.cancel("lease lost")
            await running.finished.wait()
        if earlier:
            await asyncio.sleep(0)  # the earlier one's `finally` in BullMQ
            worker.lockManager.track_job(job.id, token, int(time.time() * 1000))

    # -- events of BullMQ ------------------------------------------------------------------------------------------

    def _lease_lost(self, job_ids: list[str]) -> None:
        for running in self._running:
            if running.job_id in job_ids:
                running.cancel("lease lost")

    def _ended(self, job: Any, *_: Any) -> None:
        if self._on_end is not None:
            task = asyncio.ensure_future(self._after_end(job.id, self._on_end))
            self._after.add(task)
            task.add_done_callback(self._after.discard)

    async def _after_end(self, job_id: str, ended: Callable[[str], Awaitable[None]]) -> None:
        await ended(job_id)

    def _log_error(self, error: BaseException, *_: Any) -> None:
        text = f"{type(error).__name__}: {error}"
        now = time.monotonic()
        if now - self._logged.get(text, -_LOG_AGAIN_SECONDS) >= _LOG_AGAIN_SECONDS:
            self._logged = {known: at for known, at in self._logged.items() if now - at < _LOG_AGAIN_SECONDS}
            self._logged[text] = now
            log.warning("jobs.worker_error", queue=self._queue_name, error=text)

    def _backoff_strategy(self, attempts_made: int, *_: Any) -> int:
        return max(1, int(self._backoff.delay_seconds(attempts_made) * 1000))

    def _named(self, job_id: str) -> dict[str, str]:
        """What a log event says of a job."""
        return {"queue": self._queue_name, "upload_id": str(upload_of_job(job_id))}


class LoadWorker(JobWorker):
    """Runs loads, `load_concurrency` at once. One that was asked for while it ran is run once more.

    :param run: does the whole load; see `JobWorker`.
    :param backoff: of delays.
    """

    def __init__(
        self, settings: Settings, run: Callable[[UUID], Awaitable[None]], *, backoff: Backoff | None = None
    ) -> None:
        async def load(job_id: str) -> None:
            await run(upload_of_job(job_id))

        super().__init__(
            settings,
            LOADS,
            load,
            concurrency=settings.load_concurrency,
            backoff=backoff,
            ended=self._enqueue_again,
        )
        self._queue = LoadQueue(settings)

    def cancel(self, upload_id: UUID) -> None:
        """Stop the load of an upload that has been cancelled, if it runs here; its job is then done."""
        for running in self._running:
            if upload_of_job(running.job_id) == upload_id:
                running.cancel("cancelled")

    async def stop(self) -> None:
        """As that of `JobWorker`."""
        await super().stop()
        await self._queue.close()

    async def _enqueue_again(self, job_id: str) -> None:
        upload_id = upload_of_job(job_id)
        try:
            await self._queue.enqueue_again(upload_id)
        except Failure as failure:
            # The reconciler finds it.
            log.warning("jobs.not_enqueued_again", upload_id=str(upload_id), code=failure.code)


async def end_bullmq(worker: Any) -> None:
    """What `worker.close()` of BullMQ does, but that this can be cancelled.

    That one waits without end for Redis to answer, and when the task in which it does so is cancelled, as at the end of
    the event loop, it goes round and round for ever, with all of a core and more and more memory (bullmq 3.4.4).
    """
    _take_no_more(worker)
    if worker.processing:
        await asyncio.wait(worker.processing)
    await worker.lockManager.close()
    await worker.backend.close(force=False)
    worker.closed = True


def _take_no_more(worker: Any) -> None:
    """Have BullMQ's worker take no further job."""
    worker.closing, worker.paused = True, False
    worker.resume_event.set()
    if worker.waiting is not None:
        worker.waiting.cancel()


def _worker_url(url: str) -> str:
    """The URL with the time-outs that BullMQ's blocking reads need."""
    base, _, given = url.partition("?")
    query = dict(parse_qsl(given, keep_blank_values=True))
    query |= {"socket_timeout": str(_SOCKET_TIMEOUT_SECONDS), "socket_connect_timeout": "5"}
    return f"{base}?{urlencode(query)}"


def _retrieve(task: asyncio.Task[float | None]) -> None:
    """Look at the task's exception, which asyncio otherwise reports as never retrieved."""
    if not task.cancelled():
        task.exception()
