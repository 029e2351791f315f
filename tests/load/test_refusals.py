"""What does not pass by itself: the load fails, and says whose turn it is and what to do."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr
from yarl import URL

from stream_api.config import Settings
from stream_api.dev.postgres import Postgres
from stream_api.errors import Failure
from stream_api.ledger.rows import UploadRow
from stream_api.load import loader as loader_module
from stream_api.storage.manifests import Manifest, read_manifest
from stream_api.storage.objects import ObjectStore
from tests.load.behind import ROWS, SEGMENT_BYTES, Behind, behind_proxies, finishes
from tests.load.conftest import Loading, events, open_loading
from tests.support.settings import change

ROLE = "loader"

GRANTS = f"""
CREATE ROLE {ROLE} LOGIN PASSWORD 'secret';
GRANT USAGE ON SCHEMA stream_api, public TO {ROLE};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA stream_api TO {ROLE};
GRANT SELECT, INSERT ON webhook_events TO {ROLE};
"""

#: A trigger that fails with a SQLSTATE of our choice, as those of a table's owner may.
TRIGGER = """
CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql
AS $$ BEGIN RAISE EXCEPTION 'out of the trigger' USING ERRCODE = '{}'; END $$;
CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON webhook_events EXECUTE FUNCTION fail();
"""


@dataclass
class Restricted:
    """Loads as a role that owns nothing, on a server of its own; and the superuser, who can change that."""

    behind: Behind
    owner: Loading

    @property
    def loading(self) -> Loading:
        return self.behind.direct

    async def failed(self, manifest: Manifest, code: str) -> UploadRow:
        row = await self.loading.load(manifest)
        assert row.error is not None
        assert (row.state, row.error["code"]) == ("failed", code)
        assert await self.owner.lanes() == []
        return row

    async def retried(self, manifest: Manifest) -> None:
        await self.loading.ledger.reopen(manifest.upload_id)
        row = await self.loading.load(manifest)
        assert (row.state, row.rows_inserted, await self.owner.count()) == ("completed", ROWS, ROWS)


@asynccontextmanager
async def restricted_to(server: Postgres, settings: Settings, **values: object) -> AsyncIterator[Restricted]:
    own = change(settings, database_url=server.dsn, **values)
    async with open_loading(own) as owner:
        await owner.execute(GRANTS)
        dsn = str(URL(server.dsn).with_user(ROLE).with_password("secret"))
        async with behind_proxies(change(own, database_url=dsn)) as behind:
            yield Restricted(behind, owner)


@pytest.fixture
async def restricted(own_postgres: Postgres, settings: Settings) -> AsyncIterator[Restricted]:
    async with restricted_to(own_postgres, settings) as made:
        yield made


async def test_a_role_without_the_privilege(restricted: Restricted) -> None:
    manifest = await restricted.behind.stored()
    await restricted.owner.execute(f"REVOKE INSERT ON webhook_events FROM {ROLE}")
    error = (await restricted.failed(manifest, "table_denied")).error
    assert error is not None
    grant = f'GRANT INSERT ON "public"."webhook_events" TO {ROLE}'
    assert grant in error["message"]
    assert "permission denied for table webhook_events (SQLSTATE 42501)" in error["message"]
    assert error["role"] == ROLE
    await restricted.owner.execute(grant)
    await restricted.retried(manifest)


async def test_a_privilege_that_is_revoked_while_it_loads(restricted: Restricted) -> None:
    manifest = await restricted.behind.stored()
    await restricted.behind.postgres.throttle(300_000, "up")
    load = await restricted.behind.begun(manifest)
    await restricted.owner.execute(f"REVOKE INSERT ON webhook_events FROM {ROLE}")
    await restricted.behind.postgres.restore()
    await load
    row = await restricted.loading.ledger.get(manifest.upload_id)
    assert row is not None
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", "table_denied")
    assert 0 < row.rows_inserted == await restricted.owner.count() < ROWS
    await restricted.owner.execute(f"GRANT INSERT ON webhook_events TO {ROLE}")
    await restricted.retried(manifest)


async def test_a_schema_that_the_role_may_not_use(own_postgres: Postgres, settings: Settings) -> None:
    async with restricted_to(own_postgres, settings, target_table="audit.events") as restricted:
        await restricted.owner.execute("CREATE SCHEMA audit; ALTER TABLE webhook_events SET SCHEMA audit")
        await restricted.owner.execute("ALTER TABLE audit.webhook_events RENAME TO events")
        manifest = await restricted.behind.stored()
        row = await restricted.failed(manifest, "table_denied")
        assert row.error is not None
        assert "permission denied for schema audit" in row.error["message"]


async def test_row_level_security(restricted: Restricted) -> None:
    manifest = await restricted.behind.stored()
    await restricted.owner.execute("ALTER TABLE webhook_events ENABLE ROW LEVEL SECURITY")
    row = await restricted.failed(manifest, "table_denied")
    assert row.error is not None
    assert "row-level security" in row.error["message"]
    await restricted.owner.execute("ALTER TABLE webhook_events DISABLE ROW LEVEL SECURITY")
    await restricted.retried(manifest)


@pytest.mark.parametrize(
    ("change_table", "code", "change_back"),
    [
        (
            "ALTER TABLE webhook_events RENAME TO elsewhere",
            "table_missing",
            "ALTER TABLE elsewhere RENAME TO webhook_events",
        ),
        (
            "ALTER TABLE webhook_events RENAME status TO state",
            "plan_changed",
            "ALTER TABLE webhook_events RENAME state TO status",
        ),
    ],
)
async def test_a_table_that_changes_while_it_is_loaded(
    restricted: Restricted, change_table: str, code: str, change_back: str
) -> None:
    manifest = await restricted.behind.stored()
    await restricted.behind.postgres.throttle(300_000, "up")
    load = await restricted.behind.begun(manifest)
    changing = asyncio.create_task(restricted.owner.execute(change_table))
    await asyncio.gather(load, changing)
    row = await restricted.loading.ledger.get(manifest.upload_id)
    assert row is not None
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", code)
    await restricted.owner.execute(change_back)
    await restricted.retried(manifest)


@pytest.mark.parametrize(
    ("sqlstate", "code"),
    [
        ("42P01", "table_missing"),
        ("42501", "table_denied"),
        ("42P10", "table_denied"),
        ("0A000", "table_denied"),
        ("55000", "table_denied"),
        ("25P02", "database_refused"),
        ("XX000", "database_refused"),
        ("HV000", "database_refused"),
    ],
)
async def test_an_error_that_does_not_pass_is_never_called_one_of_ours(
    loading: Loading, sqlstate: str, code: str
) -> None:
    manifest = await loading.stored(events(range(10)))
    await loading.execute(TRIGGER.format(sqlstate))
    row = await loading.load(manifest)
    assert row.error is not None
    assert (row.state, row.error["code"], row.error["sqlstate"]) == ("failed", code, sqlstate)
    assert "out of the trigger" in row.error["message"]
    await loading.execute("DROP TRIGGER fail ON webhook_events")
    await loading.ledger.reopen(manifest.upload_id)
    assert (await loading.load(manifest)).rows_inserted == 10


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "53300", "53100", "55P03", "57014", "57P01", "58030", "25006"])
async def test_an_error_that_passes_fails_nothing(settings: Settings, sqlstate: str) -> None:
    async with open_loading(change(settings, load_attempts=2)) as loading:
        manifest = await loading.stored(events(range(10)))
        await loading.execute(TRIGGER.format(sqlstate))
        with pytest.raises(Failure) as caught:
            await loading.loader.load(manifest.upload_id)
        assert (caught.value.code, caught.value.transient) == ("database_unavailable", True)
        assert loading.statuses.records[-1].waiting_for == "database"
        assert loading.statuses.records[-1].run == 2
        await loading.execute("DROP TRIGGER fail ON webhook_events")
        assert (await loading.load(manifest)).rows_inserted == 10
        assert loading.statuses.records[-1].waiting_for is None


async def test_a_statement_timeout_of_the_administrator_cuts_no_copy(restricted: Restricted) -> None:
    await restricted.owner.execute(f"ALTER ROLE {ROLE} SET statement_timeout = '50ms'")
    manifest = await restricted.behind.stored()
    await restricted.behind.postgres.throttle(1_000_000, "up")
    await restricted.behind.loading.loader.load(manifest.upload_id)
    row = await restricted.loading.ledger.get(manifest.upload_id)
    assert row is not None
    assert (row.state, row.rows_inserted, row.run) == ("completed", ROWS, 1)


async def test_a_password_that_is_changed_while_it_loads(restricted: Restricted) -> None:
    manifest = await restricted.behind.stored()
    await restricted.behind.postgres.throttle(300_000, "up")
    load = await restricted.behind.begun(manifest)
    await restricted.owner.execute(f"ALTER ROLE {ROLE} PASSWORD 'another'")
    await restricted.behind.postgres.drop()
    # What cannot be recorded has not happened: the load waits until somebody has put the password right.
    with pytest.raises(Failure) as caught:
        await load
    assert caught.value.transient
    with pytest.raises(Failure) as caught:
        await restricted.behind.loading.loader.load(manifest.upload_id)
    assert (caught.value.code, caught.value.transient) == ("database_refused", True)
    assert "check DATABASE_URL" in caught.value.detail
    assert restricted.behind.loading.statuses.records[-1].waiting_for == "database"
    await restricted.owner.execute(f"ALTER ROLE {ROLE} PASSWORD 'secret'")
    await restricted.behind.postgres.restore()
    await finishes(restricted.behind.loading, manifest)


async def test_an_object_that_is_gone(settings: Settings) -> None:
    async with behind_proxies(settings, load_attempts=4) as behind:
        manifest = await behind.stored()
        await behind.s3.throttle(500_000, "down")
        load = await behind.begun(manifest)
        await behind.direct.store.delete(manifest.key)
        await behind.s3.drop()
        await load
        row = await behind.direct.ledger.get(manifest.upload_id)
        assert row is not None
        assert row.error is not None
        assert (row.state, row.error["code"]) == ("failed", "data_gone")
        assert "upload the file again" in row.error["message"]


async def test_credentials_of_the_store_that_are_wrong(
    loading: Loading, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = await loading.stored(events(range(10)))
    wrong = settings.model_copy(update={"s3_secret_access_key": SecretStr("wrong")})
    async with open_loading(wrong) as refused:
        refused.statuses.records = loading.statuses.records
        # Before the load has begun it waits; there is nothing that it could have failed at.
        with pytest.raises(Failure) as caught:
            await refused.loader.load(manifest.upload_id)
        assert (caught.value.code, caught.value.transient) == ("storage_refused", True)

        async def read_rightly(_: ObjectStore, upload_id: object) -> Manifest | None:
            return await read_manifest(loading.store, manifest.upload_id)

        # As if the secret had been changed after that.
        monkeypatch.setattr(loader_module, "read_manifest", read_rightly)
        with pytest.raises(Failure) as caught:
            await refused.loader.load(manifest.upload_id)
    # It has failed; what is left to do is to remove its marker, as soon as the store lets us.
    assert caught.value.transient
    row = await loading.ledger.get(manifest.upload_id)
    assert row is not None
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", "storage_refused")
    assert "AWS_SECRET_ACCESS_KEY" in row.error["message"]


@pytest.fixture
def small_disk(own_postgres: Postgres) -> Iterator[Path]:
    """A tablespace's folder, on a file system of two megabytes."""
    folder = own_postgres.folder / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system to fill up")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here to be filled up: {mounted.stderr.strip()}")
    user = own_postgres.user()
    if user is not None:
        shutil.chown(folder, user)
    yield folder
    own_postgres.stop()
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_is_waited_for_and_then_fails_the_load(
    own_postgres: Postgres, settings: Settings, small_disk: Path
) -> None:
    patient = change(settings, database_url=own_postgres.dsn, load_attempts=1)
    async with (
        open_loading(patient) as loading,
        open_loading(change(patient, disk_full_seconds=0)) as impatient,
    ):
        async with loading.pool.acquire() as connection:
            await connection.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
            await connection.execute("ALTER TABLE webhook_events SET TABLESPACE small")
        manifest = await loading.stored(events(range(ROWS)), segment_bytes=SEGMENT_BYTES)
        with pytest.raises(Failure) as caught:
            await loading.loader.load(manifest.upload_id)
        assert (caught.value.code, caught.value.extra["sqlstate"]) == ("database_unavailable", "53100")
        assert loading.statuses.records[-1].waiting_for == "database"
        row = await impatient.load(manifest)
        assert row.error is not None
        assert (row.state, row.error["code"]) == ("failed", "disk_full")
        assert "make room" in row.error["message"]
        assert 0 < row.rows_inserted == await loading.count() < ROWS
        subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)  # noqa: ASYNC221 - some milliseconds
        await loading.ledger.reopen(manifest.upload_id)
        await finishes(loading, manifest)
