"""Commits that meet: every order of their steps ends with one upload, its data and its marker."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID, uuid4

import pytest

from stream_api.config import Settings
from stream_api.errors import Failure
from stream_api.flow.budget import ByteBudget
from stream_api.storage.errors import AlreadyExists
from stream_api.storage.keys import manifest_key, pending_key
from stream_api.storage.manifests import Manifest, clear_pending, mark_pending, read_manifest
from stream_api.storage.objects import ObjectInfo, ObjectStore, open_object_store
from stream_api.upload.buffers import Buffers
from stream_api.upload.parts import Part
from stream_api.upload.transfer import Transfer
from tests.support.manifests import make_manifest

T = TypeVar("T")
BUFFERS = Buffers(1)
DATA = b"id\n1\n"


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[ObjectStore]:
    async with open_object_store(settings) as opened:
        yield opened


class Stepped(ObjectStore):
    """A store for one of several actors, each of whose requests waits for its turn.

    :param lose: the answer to this put is lost, whatever it was.
    """

    def __init__(self, store: ObjectStore, lose: str | None = None) -> None:
        self.__dict__.update(store.__dict__)
        self._store = store
        self._lose = lose
        self._turn = asyncio.Semaphore(0)
        self._done = asyncio.Semaphore(0)

    async def step(self, actor: asyncio.Task[None]) -> None:
        """Let one request happen, or the actor end."""
        self._turn.release()
        done = asyncio.create_task(self._done.acquire())
        await asyncio.wait({done, actor}, return_when=asyncio.FIRST_COMPLETED)
        done.cancel()

    async def _stepped(self, request: Awaitable[T]) -> T:
        await self._turn.acquire()
        try:
            return await request
        finally:
            self._done.release()

    async def put(
        self,
        key: str,
        body: bytes | io.BytesIO,
        *,
        content_type: str = "application/octet-stream",
        if_absent: bool = False,
    ) -> str:
        try:
            return await self._stepped(self._store.put(key, body, content_type=content_type, if_absent=if_absent))
        finally:
            if key == self._lose:
                raise Failure("storage_unavailable", "lost")

    async def get(self, key: str) -> bytes:
        return await self._stepped(self._store.get(key))

    async def delete(self, key: str) -> None:
        await self._stepped(self._store.delete(key))

    async def stat(self, key: str) -> ObjectInfo:
        return await self._stepped(self._store.stat(key))


def manifest_of(upload_id: UUID) -> Callable[[str, str], Manifest]:
    return lambda key, etag: make_manifest(
        upload_id, key=key, etag=etag, size_bytes=len(DATA), created_at=datetime.now(UTC)
    )


async def commit(transfer: Transfer) -> Manifest:
    part = Part(1, io.BytesIO(DATA), await ByteBudget(1).acquire(1))
    return await transfer.commit(part, manifest_of(transfer.upload_id))


async def upload(transfer: Transfer) -> None:
    """As the pipeline does."""
    try:
        await commit(transfer)
    except (AlreadyExists, Failure):
        await transfer.settle(1)
        await transfer.discard()


async def sweep(store: ObjectStore, upload_id: UUID) -> None:
    """What the janitor does with a marker that it has seen without a manifest for long."""
    if await read_manifest(store, upload_id) is None:
        await clear_pending(store, upload_id)
        if await read_manifest(store, upload_id) is not None:
            await mark_pending(store, upload_id)


def orders(*steps: int) -> Iterator[tuple[int, ...]]:
    """Every order of the steps of some actors, by their numbers."""
    left = [number for number, count in enumerate(steps) for _ in range(count)]
    return iter(sorted(set(_distinct(left))))


def _distinct(left: list[int]) -> Iterator[tuple[int, ...]]:
    if not left:
        yield ()
    for number in sorted(set(left)):
        rest = left.copy()
        rest.remove(number)
        for order in _distinct(rest):
            yield (number, *order)


async def play(actors: list[tuple[Stepped, Awaitable[None]]], order: tuple[int, ...]) -> None:
    """Let the actors make their requests in this order, and what is left in turn."""
    tasks = [asyncio.ensure_future(action) for _, action in actors]
    turns = itertools.chain(order, itertools.cycle(range(len(actors))))
    while not all(task.done() for task in tasks):
        number = next(turns)
        if not tasks[number].done():
            await actors[number][0].step(tasks[number])
    await asyncio.gather(*tasks)


async def check_stored(store: ObjectStore, upload_id: UUID, order: tuple[int, ...]) -> None:
    manifest = await read_manifest(store, upload_id)
    assert manifest is not None, order
    keys = {key async for key in store.list_keys("") if str(upload_id) in key}
    assert keys == {manifest.key, manifest_key(upload_id), pending_key(upload_id)}, order


async def test_a_commit_and_a_janitor(store: ObjectStore) -> None:
    """The janitor has found the marker of an earlier try that was given up."""
    for order in orders(4, 4):
        upload_id = uuid4()
        await mark_pending(store, upload_id)
        ours, janitor = Stepped(store), Stepped(store)
        transfer = Transfer(ours, upload_id, BUFFERS, derived=True)
        await play([(ours, upload(transfer)), (janitor, sweep(janitor, upload_id))], order)
        await check_stored(store, upload_id, order)
        await empty(store)


@pytest.mark.parametrize("lost", [False, True], ids=["", "and one never hears which has won"])
async def test_two_commits(store: ObjectStore, lost: bool) -> None:
    for order in orders(4, 4):
        upload_id = uuid4()
        one, other = Stepped(store), Stepped(store, manifest_key(upload_id) if lost else None)
        transfers = [Transfer(each, upload_id, BUFFERS, derived=True) for each in (one, other)]
        await play([(one, upload(transfers[0])), (other, upload(transfers[1]))], order)
        await check_stored(store, upload_id, order)
        await empty(store)


async def empty(store: ObjectStore) -> None:
    async for key in store.list_keys(""):
        await store.delete(key)


class Frozen(ObjectStore):
    """A store whose manifest is written after the janitor has been there."""

    def __init__(self, store: ObjectStore, janitor: Callable[[], Awaitable[None]]) -> None:
        self.__dict__.update(store.__dict__)
        self._janitor = janitor

    async def put(
        self,
        key: str,
        body: bytes | io.BytesIO,
        *,
        content_type: str = "application/octet-stream",
        if_absent: bool = False,
    ) -> str:
        if if_absent:
            await self._janitor()
        return await super().put(key, body, content_type=content_type, if_absent=if_absent)


@pytest.mark.parametrize("derived", [False, True])
async def test_a_commit_that_took_too_long_for_its_data_fails(store: ObjectStore, derived: bool) -> None:
    async def janitor() -> None:
        await store.delete(transfer.key)
        await sweep(store, transfer.upload_id)

    transfer = Transfer(Frozen(store, janitor), uuid4(), BUFFERS, derived=derived, slow_commit_seconds=0)
    with pytest.raises(Failure) as failed:
        await commit(transfer)
    assert failed.value.code == "storage_unavailable"
    for _ in range(2):
        await transfer.discard()
    # With a derived id the marker may be another's, and is the janitor's.
    left = [pending_key(transfer.upload_id)] if derived else []
    assert [key async for key in store.list_keys("")] == left


async def test_a_slow_commit_whose_data_is_there_has_its_marker(store: ObjectStore) -> None:
    async def janitor() -> None:
        await sweep(store, transfer.upload_id)

    transfer = Transfer(Frozen(store, janitor), uuid4(), BUFFERS, slow_commit_seconds=0)
    await commit(transfer)
    await check_stored(store, transfer.upload_id, ())


async def test_a_commit_that_was_quick_does_not_ask(store: ObjectStore) -> None:
    """The one above would be as right without the question: this is what the time is for."""

    async def janitor() -> None:
        await store.delete(transfer.key)

    transfer = Transfer(Frozen(store, janitor), uuid4(), BUFFERS)
    await commit(transfer)


class Late(ObjectStore):
    """A store that is asked for a manifest, is given up, and writes it when the data is being removed."""

    def __init__(self, store: ObjectStore) -> None:
        self.__dict__.update(store.__dict__)
        self._store = store
        self.late: tuple[str, bytes | io.BytesIO] | None = None

    async def put(
        self,
        key: str,
        body: bytes | io.BytesIO,
        *,
        content_type: str = "application/octet-stream",
        if_absent: bool = False,
    ) -> str:
        if if_absent:
            self.late = (key, body)
            raise Failure("storage_unavailable", "given up")
        return await self._store.put(key, body, content_type=content_type)

    async def delete(self, key: str) -> None:
        if self.late is not None and "/data-" in key:
            await self._store.put(*self.late, if_absent=True)
        await self._store.delete(key)


@pytest.mark.parametrize("derived", [False, True])
async def test_a_manifest_that_comes_late_does_not_stay_without_its_data(store: ObjectStore, derived: bool) -> None:
    late = Late(store)
    transfer = Transfer(late, uuid4(), BUFFERS, derived=derived)
    await upload(transfer)
    assert late.late is not None
    assert [key async for key in store.list_keys("")] == ([pending_key(transfer.upload_id)] if derived else [])


async def test_a_manifest_of_another_is_never_removed(store: ObjectStore) -> None:
    upload_id = uuid4()
    winner, loser = (Transfer(store, upload_id, BUFFERS, derived=True) for _ in range(2))
    await commit(winner)
    with pytest.raises(AlreadyExists):
        await commit(loser)
    for _ in range(2):
        await loser.discard()
    await check_stored(store, upload_id, ())
