"""`POST /upload/{id}/webhook`, and what the status says of a webhook."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from pydantic import SecretStr

from stream_api.config import Settings
from stream_api.load.reporting import Reporter, status_record
from tests.http.serving import Serving, serve
from tests.http.test_routes import failed, taken
from tests.support.faults import FaultProxy
from tests.support.settings import change
from tests.upload.forms import END, HEADERS, field, file


async def uploaded(serving: Serving, *, url: str | None = "https://example.com/hook") -> UUID:
    callback = b"" if url is None else field("callbackUrl", url.encode())
    status, document = await serving.post(callback + file(b"id\n1\n") + END, headers=HEADERS)
    assert status == 202, document
    return UUID(document["uploadId"])


async def again(serving: Serving, upload_id: object) -> tuple[int, dict[str, Any]]:
    async with serving.client.post(f"{serving.url}/upload/{upload_id}/webhook") as answer:
        return answer.status, await answer.json(content_type=None)


async def test_a_webhook_is_sent_again(settings: Settings) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        await failed(serving, upload_id)
        row = await serving.ledger.get(upload_id)
        manifest = await serving.manifests.read(upload_id)
        assert row is not None
        assert manifest is not None
        await serving.statuses.write(status_record(manifest, row))
        status, document = await again(serving, upload_id)
        assert (status, document["status"]) == (202, "failed")
        assert document["webhook"] == {"state": "pending", "attempts": 0, "lastError": None, "lastAt": None}
        # The status says the same, from Redis and without.
        assert (await serving.get(f"/upload/{upload_id}/status"))[1] == document
        await serving.redis.flushdb()
        assert (await serving.get(f"/upload/{upload_id}/status"))[1] == document
        rearmed = await serving.ledger.get(upload_id)
        assert rearmed is not None
        assert rearmed.webhook_round == row.webhook_round + 1


async def test_why_a_webhook_is_not_sent_again(settings: Settings) -> None:
    async with serve(settings) as serving:

        async def why(upload_id: object) -> tuple[int, str]:
            status, document = await again(serving, upload_id)
            return status, document["code"]

        for unknown in (uuid4(), "no-id"):
            assert await why(unknown) == (404, "upload_not_found")
        upload_id = await uploaded(serving)
        assert await why(upload_id) == (409, "upload_not_ended")
        await taken(serving, upload_id)
        assert await why(upload_id) == (409, "upload_not_ended")
        without = await uploaded(serving, url=None)
        await failed(serving, without)
        assert await why(without) == (409, "webhook_missing")
        await failed(serving, upload_id)
        async with serving.ledger._pool.acquire() as connection:
            await connection.execute("UPDATE stream_api.uploads SET state = 'expired'")
        assert await why(upload_id) == (410, "upload_gone")


async def test_without_redis_it_is_sent_again_all_the_same(settings: Settings) -> None:
    async with FaultProxy.before(settings.redis_url.get_secret_value()) as proxy:
        url = SecretStr(proxy.url(settings.redis_url.get_secret_value()))
        async with serve(change(settings, redis_url=url)) as serving:
            upload_id = await uploaded(serving)
            await failed(serving, upload_id)
            await proxy.refuse()
            status, document = await again(serving, upload_id)
            assert (status, document["webhook"]["state"]) == (202, "pending")
            await proxy.restore()


async def test_a_record_is_brought_up_to_the_row_with_what_the_manifest_said(settings: Settings) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        stale = await serving.statuses.read(upload_id)
        assert stale is not None
        await failed(serving, upload_id)
        row = await serving.ledger.get(upload_id)
        assert row is not None
        await Reporter(serving.statuses).bring_up_to(row)
        record = await serving.statuses.read(upload_id)
        assert record is not None
        assert (record.status, record.revision, record.run) == ("failed", row.revision, 1)
        assert (record.file_name, record.size_bytes, record.sha256) == (
            stale.file_name, stale.size_bytes, stale.sha256,
        )  # fmt: skip
        assert record.webhook is not None
        assert record.webhook.state == "pending"
        # Without a record the row itself answers: none is made without the file's name and hash.
        await serving.redis.flushdb()
        await Reporter(serving.statuses).bring_up_to(row)
        assert await serving.statuses.read(upload_id) is None
