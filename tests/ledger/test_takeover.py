"""A worker that is frozen holds locks until its successor ends its sessions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from pydantic import SecretStr
from yarl import URL

from stream_api.config import Settings
from stream_api.errors import Failure, RunLost
from stream_api.ledger import uploads
from stream_api.ledger.expiry import Expiry
from stream_api.ledger.pool import LOCK_TIMEOUT_SECONDS, open_pool
from stream_api.ledger.segments import claim_segment, commit_segment
from stream_api.ledger.uploads import Ended, Taken
from tests.ledger.conftest import Loads, figures


async def test_a_frozen_copy_does_not_hold_up_the_successor(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    frozen = await loads.lane(upload_id, 1)
    in_copy = asyncio.Event()
    thaw = asyncio.Event()

    async def never_ending() -> AsyncIterator[bytes]:
        yield b"a"
        in_copy.set()
        await thaw.wait()

    async def segment() -> None:
        assert await claim_segment(frozen, upload_id, 1, 0)
        await frozen.copy_to_table("webhook_events", source=never_ending(), format="csv")

    loading = asyncio.create_task(segment())
    await in_copy.wait()

    taken = await loads.take(upload_id)
    assert taken.run == 2
    await loads.load(upload_id, 2, figures(0, 0, 100, rows=1))
    assert (await loads.ledger.complete(upload_id, 2)).state == "completed"

    thaw.set()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
        await loading
    with contextlib.suppress(OSError):
        await frozen.close()


async def test_a_session_idle_in_its_transaction_does_not_hold_up_the_successor(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    frozen = [await loads.lane(upload_id, 1) for _ in range(2)]
    for number, lane in enumerate(frozen):
        await claim_segment(lane, upload_id, 1, number)
    taken = await loads.take(upload_id)
    assert taken.run == 2
    for lane in frozen:
        with pytest.raises(Failure) as failed:
            await commit_segment(lane, upload_id, figures(0, 0, 100), "webhook_events")
        assert (failed.value.code, failed.value.transient) == ("database_unavailable", True)
        # Once more, over a connection that is known to be lost.
        with pytest.raises(Failure) as failed:
            await commit_segment(lane, upload_id, figures(0, 0, 100), "webhook_events")
        assert failed.value.code == "database_unavailable"
    await loads.load(upload_id, 2, figures(0, 0, 100))


async def test_only_sessions_of_earlier_runs_of_this_upload_are_ended(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    await loads.take(upload_id)
    earlier, current = [await loads.lane(upload_id, run) for run in (1, 2)]
    later = await loads.lane(upload_id, 7)
    another = await loads.lane(uuid4(), 1)
    plain = [
        await asyncpg.connect(
            loads.settings.database_url.get_secret_value(), server_settings={"application_name": name}
        )
        for name in (
            f"stream-api:{upload_id}",
            f"stream-api:{upload_id}:",
            f"stream-api:{upload_id}:1x",
            f"x:{upload_id}:1",
        )
    ]
    assert (await loads.take(upload_id)).run == 3
    for ended in (earlier, current):
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
            await ended.fetchval("SELECT 1")
    for alive in (later, another, *plain):
        assert await alive.fetchval("SELECT 1") == 1
        await alive.close()


async def test_an_ordinary_role_can_do_all_of_it(loads: Loads, upload_id: UUID) -> None:
    owner = await asyncpg.connect(loads.settings.database_url.get_secret_value())
    role = f"role_{upload_id.hex}"
    await owner.execute(f"""
        CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT USAGE ON SCHEMA stream_api TO {role};
        GRANT ALL ON ALL TABLES IN SCHEMA stream_api, public TO {role}""")
    try:
        url = URL(loads.settings.database_url.get_secret_value()).with_user(role).with_password("x")
        settings = Settings(database_url=SecretStr(str(url)))
        # A session of another role is not ours to end, whatever it is called.
        foreign = await loads.lane(upload_id, 1)
        async with await open_pool(settings) as pool:
            own = Loads(settings, uploads.Ledger(pool))
            await own.take(upload_id)
            frozen = await own.lane(upload_id, 1)
            await claim_segment(frozen, upload_id, 1, 0)
            assert (await own.take(upload_id)).run == 2
            await own.load(upload_id, 2, figures(0, 0, 100))
            assert (await own.ledger.complete(upload_id, 2)).state == "completed"
        assert await foreign.fetchval("SELECT 1") == 1
        await foreign.close()
    finally:
        await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await owner.close()


async def test_taking_ends_at_some_time_when_somebody_else_holds_the_row(
    loads: Loads, upload_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_SEIZE_SECONDS", 1.0)
    await loads.take(upload_id)
    stranger = await asyncpg.connect(loads.settings.database_url.get_secret_value())
    async with stranger.transaction():
        await stranger.execute("SELECT FROM stream_api.uploads WHERE id = $1 FOR UPDATE", upload_id)
        with pytest.raises(Failure) as failed:
            await loads.take(upload_id)
        assert (failed.value.code, failed.value.transient) == ("database_unavailable", True)
    assert (await loads.take(upload_id)).run == 2
    await stranger.close()


async def test_lanes_that_share_the_row_without_end_do_not_hold_up_a_cancel(loads: Loads, upload_id: UUID) -> None:
    """Each holds the row for less than any time-out, and hands it on to the other before it lets go."""
    await loads.take(upload_id)
    lanes = [await loads.lane(upload_id, 1) for _ in range(2)]
    committed = 0

    async def share() -> None:
        nonlocal committed
        held = None
        for number in itertools.count():
            lane = lanes[number % 2]
            await claim_segment(lane, upload_id, 1, number)
            if held is not None:
                await held.execute("COMMIT")
                committed += 1
            held = lane
            await asyncio.sleep(0.2)  # a COPY

    sharing = asyncio.create_task(share())
    async with asyncio.timeout(20):
        while not committed:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
        started = time.monotonic()
        row = await loads.ledger.cancel(loads.intake(upload_id))
    assert row.state == "cancelled"
    assert time.monotonic() - started < LOCK_TIMEOUT_SECONDS + 2
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, Failure)):
        await sharing
    for lane in lanes:
        lane.terminate()


async def test_two_that_take_at_once_while_a_third_is_frozen(loads: Loads, upload_id: UUID) -> None:
    await loads.take(upload_id)
    frozen = await loads.lane(upload_id, 1)
    await claim_segment(frozen, upload_id, 1, 0)
    taken = await asyncio.gather(*(loads.take(upload_id) for _ in range(2)))
    assert sorted(one.run for one in taken) == [2, 3]
    with pytest.raises(RunLost):
        await loads.load(upload_id, 2, figures(0, 0, 100))
    await loads.load(upload_id, 3, figures(0, 0, 100))


async def test_a_worker_of_an_upload_whose_id_has_come_back_does_not_touch_the_new_one(
    loads: Loads, upload_id: UUID
) -> None:
    old = loads.intake(upload_id)
    await loads.ledger.take(old)
    lane = await loads.lane(upload_id, 1)
    await loads.ledger.cancel(old)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
        await lane.fetchval("SELECT 1")  # it may hold a slot of the dataset
    lane = await loads.lane(upload_id, 1)
    expiry = Expiry(loads.ledger._pool)
    (expired,) = await expiry.expire(retention_seconds=0, limit=1)
    await expiry.forget(expired)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
        await lane.fetchval("SELECT 1")
    with pytest.raises(Failure):
        await loads.ledger.take(old, only_run=1)
    new = replace(old, created_at=old.created_at + timedelta(days=8))
    taken = await loads.ledger.take(new)
    assert isinstance(taken, Taken)
    for only_run in (None, taken.run):
        with pytest.raises(RunLost):
            await loads.ledger.take(old, only_run=only_run)


async def test_an_upload_that_is_found_ended_has_no_sessions_left(loads: Loads, upload_id: UUID) -> None:
    taken = await loads.take(upload_id)
    await loads.ledger.fail(upload_id, taken.run, code="internal_error", message="")
    frozen = await loads.lane(upload_id, taken.run)
    assert isinstance(await loads.take_or_ended(upload_id), Ended)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
        await frozen.fetchval("SELECT 1")
