"""`DELETE /upload/{id}` with real servers behind it and no worker."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

from pydantic import SecretStr

from stream_api.config import Settings
from stream_api.datasets.dataset import built_in
from stream_api.ledger.expiry import Expiry
from stream_api.ledger.uploads import Ended
from stream_api.load.loader import intake_of
from tests.conftest import Bucket
from tests.http.serving import Serving, serve
from tests.http.test_routes import failed, taken, uploaded
from tests.support.faults import FaultProxy
from tests.support.settings import change


async def delete(serving: Serving, upload_id: UUID | str) -> tuple[int, dict[str, object]]:
    async with serving.client.delete(f"{serving.url}/upload/{upload_id}") as answer:
        return answer.status, await answer.json(content_type=None)


async def test_what_waits_is_cancelled_and_only_its_manifest_stays(settings: Settings, bucket: Bucket) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        status, document = await delete(serving, upload_id)
        assert (status, document["status"], document["rowsProcessed"]) == (200, "cancelled", 0)
        assert document["completedAt"] is not None
        assert await asyncio.to_thread(bucket.keys) == [f"uploads/{upload_id}/manifest.json"]
        assert await serving.get(f"/upload/{upload_id}/status") == (200, document)
        assert await delete(serving, upload_id) == (200, document)
        # A worker that takes the job, which still is in the queue, finds out.
        manifest = await serving.manifests.read(upload_id)
        assert manifest is not None
        assert isinstance(await serving.ledger.take(intake_of(manifest, built_in("webhook_events"))), Ended)
        async with serving.client.post(f"{serving.url}/upload/{upload_id}/retry") as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (410, "upload_gone")
        assert await asyncio.to_thread(bucket.keys) == [f"uploads/{upload_id}/manifest.json"]


async def test_what_runs_is_cancelled_and_its_worker_told(settings: Settings) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        run = await taken(serving, upload_id)
        told: list[UUID] = []
        with serving.signals.cancelling(told.append):
            status, document = await delete(serving, upload_id)
        assert (status, document["status"], document["run"]) == (200, "cancelled", run + 1)
        assert upload_id in told


async def test_what_has_failed_is_cancelled(settings: Settings, bucket: Bucket) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        await failed(serving, upload_id)
        status, document = await delete(serving, upload_id)
        assert (status, document["status"], document["error"]) == (200, "cancelled", None)
        assert await asyncio.to_thread(bucket.keys) == [f"uploads/{upload_id}/manifest.json"]


async def test_what_is_over_or_unknown_is_not(settings: Settings, bucket: Bucket) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        manifest = await serving.manifests.read(upload_id)
        assert manifest is not None
        run = await taken(serving, upload_id)
        async with serving.ledger._pool.acquire() as connection:
            await connection.execute(
                "UPDATE stream_api.uploads SET size_bytes = 0, decoded_bytes = 0"
            )  # the ledger covers all of it
        await serving.ledger.complete(upload_id, run)
        keys = await asyncio.to_thread(bucket.keys)
        status, document = await delete(serving, upload_id)
        assert (status, document["code"], document["uploadStatus"]) == (409, "upload_completed", "completed")
        assert await asyncio.to_thread(bucket.keys) == keys
        await Expiry(serving.ledger._pool).expire(retention_seconds=-1, limit=1)
        status, document = await delete(serving, upload_id)
        assert (status, document["code"]) == (410, "upload_gone")
        for unknown in (uuid4(), "no-id"):
            status, document = await delete(serving, unknown)
            assert (status, document["code"]) == (404, "upload_not_found")


async def test_twenty_at_once(settings: Settings, bucket: Bucket) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        await taken(serving, upload_id)
        answers = await asyncio.gather(*(delete(serving, upload_id) for _ in range(20)))
        assert {status for status, _ in answers} == {200}
        assert all(document == answers[0][1] for _, document in answers)
        assert await asyncio.to_thread(bucket.keys) == [f"uploads/{upload_id}/manifest.json"]


async def test_while_the_store_is_away_it_is_cancelled_and_removed_later(settings: Settings, bucket: Bucket) -> None:
    async with FaultProxy.before(str(settings.s3_endpoint_url)) as proxy:
        url = proxy.url(str(settings.s3_endpoint_url))
        away = change(settings, s3_endpoint_url=url, s3_max_attempts=1)
        async with serve(away) as serving:
            new, known = await uploaded(serving), await uploaded(serving)
            await taken(serving, known)
            await proxy.refuse()
            status, document = await delete(serving, known)
            assert (status, document["status"]) == (202, "cancelled")
            # Without a row nobody can tell what this is.
            status, document = await delete(serving, new)
            assert (status, document["code"]) == (503, "storage_unavailable")
            assert f"pending/{known}" in await asyncio.to_thread(bucket.keys)
            await proxy.restore()
            for upload_id in (new, known):
                assert (await delete(serving, upload_id))[0] == 200
            assert await asyncio.to_thread(bucket.keys) == [
                f"uploads/{upload_id}/manifest.json" for upload_id in sorted((new, known), key=str)
            ]


async def test_while_the_database_is_away_nothing_is_removed(settings: Settings, bucket: Bucket) -> None:
    dsn = settings.database_url.get_secret_value()
    async with FaultProxy.before(dsn) as proxy, serve(change(settings, database_url=proxy.url(dsn))) as serving:
        upload_id = await uploaded(serving)
        keys = await asyncio.to_thread(bucket.keys)
        await proxy.refuse()
        status, document = await delete(serving, upload_id)
        assert (status, document["code"]) == (503, "database_unavailable")
        assert await asyncio.to_thread(bucket.keys) == keys


async def test_while_redis_is_away_it_is_cancelled_all_the_same(settings: Settings, bucket: Bucket) -> None:
    url = settings.redis_url.get_secret_value()
    async with (
        FaultProxy.before(url) as proxy,
        serve(change(settings, redis_url=SecretStr(proxy.url(url)))) as serving,
    ):
        upload_id = await uploaded(serving)
        await proxy.refuse()
        status, document = await delete(serving, upload_id)
        assert (status, document["status"], document["stale"]) == (200, "cancelled", False)
        assert await asyncio.to_thread(bucket.keys) == [f"uploads/{upload_id}/manifest.json"]
        assert await serving.get(f"/upload/{upload_id}/status") == (200, document)
