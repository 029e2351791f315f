"""Postgres that ends sessions, dies, is locked or is full; one that is away is in tests/e2e/test_outages.py."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stream_api.config import Settings
from stream_api.dev.postgres import Postgres
from tests.conftest import Bucket
from tests.faults.files import make_file
from tests.faults.stand import Stand, open_stand
from tests.support.settings import change

pytestmark = pytest.mark.timeout(400)

FILE = make_file(20_000)


@pytest.fixture
async def own_stand(settings: Settings, own_postgres: Postgres, bucket: Bucket, tmp_path: Path) -> AsyncIterator[Stand]:
    async with open_stand(change(settings, database_url=own_postgres.dsn), bucket, tmp_path) as opened:
        yield opened


async def test_sessions_are_terminated_again_and_again(stand: Stand) -> None:
    client = await stand.start_api()
    await stand.start("worker")
    await stand.postgres.throttle(400_000, "up")
    upload_id = (await client.upload(FILE.data))["uploadId"]
    for share in (0.0, 0.2, 0.4, 0.6):
        await client.until(upload_id, lambda status: status["progress"] > share)  # noqa: B023
        ended = await stand.database.value(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'stream-api%'"
        )
        assert ended
        await stand.check_consistent(upload_id)
    await stand.postgres.restore()
    await stand.check_loaded(client, upload_id, FILE)
    await stand.check_stopped()


async def test_an_immediate_stop_and_a_restart(own_stand: Stand, own_postgres: Postgres) -> None:
    client = await own_stand.start_api()
    await own_stand.start("worker")
    await own_stand.postgres.throttle(400_000, "up")
    upload_id = (await client.upload(FILE.data))["uploadId"]
    for share in (0.0, 0.5):
        await client.until(upload_id, lambda status: status["progress"] > share)  # noqa: B023
        await asyncio.to_thread(own_postgres.kill)
        # Not known from the ledger now, but the copy in Redis is there.
        assert (await client.status(upload_id))["status"] == "processing"
        await asyncio.to_thread(own_postgres.start)
        await own_stand.check_consistent(upload_id)
    await own_stand.postgres.restore()
    await own_stand.check_loaded(client, upload_id, FILE)
    await own_stand.check_stopped()


async def test_a_lock_held_for_longer_than_every_time_out(stand: Stand) -> None:
    """The load waits for the table as long as it takes: no other run, no failure, and the API answers."""
    client = await stand.start_api()
    await stand.start("worker", database_command_timeout_seconds=1)
    await stand.postgres.throttle(600_000, "up")
    upload_id = (await client.upload(FILE.data))["uploadId"]
    await client.until(upload_id, lambda status: bool(status["rowsProcessed"]))
    async with stand.database.locked():
        await asyncio.sleep(4)  # the outage: leases last for 2 s, statements for 1 s, waits for locks of ours for 2 s
        async with client.http.get(f"{client.url}/readyz") as answer:
            assert answer.status == 200
        assert (await client.status(upload_id))["status"] == "processing"
        assert await stand.database.sessions(f"stream-api:{upload_id}:1")
    await stand.postgres.restore()
    status = await stand.check_loaded(client, upload_id, FILE)
    assert status["run"] == 1
    await stand.check_stopped()


@pytest.fixture
def small_disk(own_postgres: Postgres) -> Iterator[Path]:
    """A file system of 2 MiB that Postgres may write to."""
    folder = own_postgres.folder / "small"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("a small file system can be mounted by root only")
    shutil.chown(folder, own_postgres.user() or "root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def _enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)


async def test_a_full_disk(own_stand: Stand, own_postgres: Postgres, small_disk: Path) -> None:
    """What fits is loaded; then the load waits, and fails by and by; with more room a retry loads the rest."""
    await asyncio.to_thread(
        own_postgres.execute,
        f"CREATE TABLESPACE small LOCATION '{small_disk}'",
        "ALTER TABLE webhook_events SET TABLESPACE small",
    )
    client = await own_stand.start_api()
    await own_stand.start("worker", disk_full_seconds=2)
    upload_id = (await client.upload(FILE.data))["uploadId"]
    status = await client.end(upload_id)
    assert (status["status"], status["error"]["code"]) == ("failed", "disk_full")
    assert 0 < await own_stand.check_consistent(upload_id) == status["rowsProcessed"] < FILE.good
    await own_stand.check_at_rest(kept=lambda key: key.startswith(f"uploads/{upload_id}/data-"))
    await asyncio.to_thread(_enlarge, small_disk)
    async with client.http.post(f"{client.url}/upload/{upload_id}/retry") as answer:
        assert answer.status == 202
    await own_stand.check_loaded(client, upload_id, FILE)
    await own_stand.check_stopped()
