"""The kinds of fault that chaos is made of. Each begins, lasts for a while and is mended by itself."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from stream_api.dev.server import Server
from tests.faults.process import PLACES
from tests.faults.servers import Servers
from tests.faults.stand import Process, Stand
from tests.support.faults import Direction, FaultProxy
from tests.support.service import Client


@dataclass
class Target:
    """What is broken: a stand with its servers, an API and some workers.

    :param values: settings of the processes.
    """

    stand: Stand
    servers: Servers
    values: dict[str, Any]
    #: As it is now: a killed one comes back elsewhere.
    api: Process = field(init=False)
    #: As they are now, some perhaps dead and about to be replaced.
    workers: list[Process] = field(default_factory=list)
    #: The upload of the run, once there is an answer.
    upload: asyncio.Future[str] = field(init=False)
    #: Whether somebody asked for its end.
    cancelled: bool = False
    #: Two faults of one server at once would mend each other.
    locks: defaultdict[object, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def start(self, *, workers: int) -> None:
        """Start the processes."""
        self.api = await self.stand.start("serve", "--no-worker", **self.values)
        for _ in range(workers):
            self.workers.append(await self.stand.start("worker", **self.values))

    @property
    def client(self) -> Client:
        """A client of the API as it is now."""
        return Client(self.stand.http, self.api.url)


_DIRECTIONS: Final[list[tuple[Direction, ...]]] = [("up",), ("down",), ("up", "down")]
Mend = Callable[[Target, random.Random], Awaitable[None]]


async def kill_worker(target: Target, rng: random.Random) -> None:
    number = rng.randrange(len(target.workers))
    async with target.locks["worker", number]:
        await target.workers[number].kill()
        await asyncio.sleep(rng.uniform(0, 1))
        target.workers[number] = await target.stand.start("worker", **target.values)


async def kill_worker_at_a_place(target: Target, rng: random.Random) -> None:
    """A worker is replaced by one that dies at a place of the load, if it comes by, or else at the end."""
    number, place = rng.randrange(len(target.workers)), rng.choice(list(PLACES))
    count = rng.randint(1, 20) if place in {"before a segment", "inside a COPY", "after a commit"} else 1
    async with target.locks["worker", number]:
        await target.workers[number].kill()
        doomed = await target.stand.start("worker", "--die-at", place, "--die-on", str(count), **target.values)
        try:
            async with asyncio.timeout(rng.uniform(2, 5)):
                await asyncio.to_thread(doomed.process.wait)
        except TimeoutError:
            await doomed.kill()
        target.workers[number] = await target.stand.start("worker", **target.values)


async def freeze_worker(target: Target, rng: random.Random) -> None:
    number = rng.randrange(len(target.workers))
    async with target.locks["worker", number]:
        target.workers[number].signal(signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(0.2, 5))
        target.workers[number].signal(signal.SIGCONT)


async def stop_worker(target: Target, rng: random.Random) -> None:
    number = rng.randrange(len(target.workers))
    async with target.locks["worker", number]:
        assert await target.workers[number].stop() == 0
        target.workers[number] = await target.stand.start("worker", **target.values)


async def kill_api(target: Target, rng: random.Random) -> None:
    async with target.locks["api"]:
        await target.api.kill()
        target.api = await target.stand.start("serve", "--no-worker", **target.values)


async def flush_redis(target: Target, rng: random.Random) -> None:
    async with target.locks[target.servers.redis]:
        await target.stand.flush()


async def restart_redis(target: Target, rng: random.Random) -> None:
    await _restart(target, target.servers.redis, rng)


async def empty_redis(target: Target, rng: random.Random) -> None:
    """Redis is killed with all its data."""
    redis = target.servers.redis
    async with target.locks[redis]:
        await target.stand.flush()
        await asyncio.to_thread(redis.restart)


async def kill_postgres(target: Target, rng: random.Random) -> None:
    await _restart(target, target.servers.postgres, rng)


async def terminate_sessions(target: Target, rng: random.Random) -> None:
    async with target.locks[target.servers.postgres]:
        for _ in range(rng.randint(1, 3)):
            await target.stand.database.value(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name LIKE 'stream-api%'"
            )
            await asyncio.sleep(rng.uniform(0, 0.7))


async def lock_table(target: Target, rng: random.Random) -> None:
    async with target.locks[target.servers.postgres], target.stand.database.locked():
        await asyncio.sleep(rng.uniform(0.5, 4))


async def cut_s3(target: Target, rng: random.Random) -> None:
    """Downloads or uploads are cut in the middle, by a reset or, worse, by an orderly end."""
    proxy = target.stand.s3
    async with target.locks[proxy]:
        after = rng.choice((rng.randint(0, 2000), rng.randint(0, 5_000_000)))
        cut = rng.choice((proxy.reset_after, proxy.close_after))
        await cut(after, rng.choice(("up", "down", "down")), times=rng.randint(1, 4))
        await asyncio.sleep(rng.uniform(0.5, 3))
        await proxy.restore()


async def busy_s3(target: Target, rng: random.Random) -> None:
    proxy = target.stand.s3
    async with target.locks[proxy]:
        await proxy.answer("503 Slow Down", b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>")
        await asyncio.sleep(rng.uniform(0.2, 3))
        await proxy.restore()


async def cancel(target: Target, rng: random.Random) -> None:
    """The client changes its mind, at any moment of the load or after it."""
    upload_id = await target.upload
    target.cancelled = True
    await _ask(target, "DELETE", f"/upload/{upload_id}", {200, 202, 409})


async def retry(target: Target, rng: random.Random) -> None:
    """The client asks for a retry of what has not failed."""
    upload_id = await target.upload
    # Before the first taking there is no row that could be reopened.
    await _ask(target, "POST", f"/upload/{upload_id}/retry", {404, 409, 410})


async def _ask(target: Target, method: str, path: str, answers: set[int]) -> None:
    with suppress(aiohttp.ClientError):  # the API may be dead at present
        async with target.stand.http.request(method, f"{target.api.url}{path}") as answer:
            assert answer.status in answers | {503}, await answer.text()


def _away(proxy: Callable[[Stand], FaultProxy], *, at_least: float = 0.2, at_most: float = 4) -> Mend:
    async def away(target: Target, rng: random.Random) -> None:
        async with target.locks[proxy(target.stand)]:
            await proxy(target.stand).refuse()
            await asyncio.sleep(rng.uniform(at_least, at_most))
            await proxy(target.stand).restore()

    return away


def _stall(proxy: Callable[[Stand], FaultProxy]) -> Mend:
    async def stall(target: Target, rng: random.Random) -> None:
        async with target.locks[proxy(target.stand)]:
            await proxy(target.stand).stall(*rng.choice(_DIRECTIONS))
            await asyncio.sleep(rng.uniform(0.2, 4))
            # What was stalled is sometimes lost, and sometimes arrives late.
            if rng.random() < 0.5:
                await proxy(target.stand).drop()
            await proxy(target.stand).restore()

    return stall


def _drop(proxy: Callable[[Stand], FaultProxy]) -> Mend:
    async def drop(target: Target, rng: random.Random) -> None:
        for _ in range(rng.randint(1, 4)):
            await proxy(target.stand).drop()
            await asyncio.sleep(rng.uniform(0, 0.5))

    return drop


async def _restart(target: Target, server: Server, rng: random.Random) -> None:
    async with target.locks[server]:
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(rng.uniform(0, 2))
        await asyncio.to_thread(server.start)


KINDS: Final[dict[str, Mend]] = {
    "kill a worker": kill_worker,
    "kill a worker at a place": kill_worker_at_a_place,
    "freeze a worker": freeze_worker,
    "stop a worker": stop_worker,
    "kill the API": kill_api,
    "DELETE": cancel,
    "retry": retry,
    "flush Redis": flush_redis,
    "restart Redis": restart_redis,
    "restart Redis empty": empty_redis,
    "Redis away": _away(lambda stand: stand.redis),
    "Redis stalls": _stall(lambda stand: stand.redis),
    "Redis connections cut": _drop(lambda stand: stand.redis),
    "restart Postgres": kill_postgres,
    "Postgres sessions terminated": terminate_sessions,
    "Postgres table locked": lock_table,
    "Postgres away": _away(lambda stand: stand.postgres),
    "Postgres stalls": _stall(lambda stand: stand.postgres),
    "Postgres connections cut": _drop(lambda stand: stand.postgres),
    "S3 cut": cut_s3,
    "S3 busy": busy_s3,
    "S3 away": _away(lambda stand: stand.s3),
    "S3 stalls": _stall(lambda stand: stand.s3),
}

#: Outages that are longer than every lease, time-out and number of attempts.
LONG: Final[dict[str, Mend]] = {
    "Redis away for 30 s": _away(lambda stand: stand.redis, at_least=30, at_most=30),
    "Postgres away for 30 s": _away(lambda stand: stand.postgres, at_least=30, at_most=30),
    "S3 away for 30 s": _away(lambda stand: stand.s3, at_least=30, at_most=30),
}
