"""What each route answers, with real servers behind it and no worker."""

from __future__ import annotations

import asyncio
import gzip
import json
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr

from stream_api.config import Settings
from stream_api.datasets.dataset import built_in
from stream_api.errors import Failure
from stream_api.load.loader import intake_of
from tests.conftest import Bucket
from tests.http.serving import Serving, serve
from tests.support.faults import FaultProxy
from tests.support.settings import change
from tests.upload.forms import END, HEADERS, field, file

FORM = file(b"id,event_type\n") + END


async def uploaded(serving: Serving) -> UUID:
    status, document = await serving.post(FORM, headers=HEADERS)
    assert status == 202
    return UUID(document["uploadId"])


async def taken(serving: Serving, upload_id: UUID) -> int:
    """Take the load as a worker does; the run."""
    manifest = await serving.manifests.read(upload_id)
    assert manifest is not None
    taken = await serving.ledger.take(intake_of(manifest, built_in("webhook_events")))
    return taken.run  # type: ignore[union-attr]  # nothing has ended yet


async def failed(serving: Serving, upload_id: UUID) -> None:
    run = await taken(serving, upload_id)
    await serving.ledger.fail(upload_id, run, code="header_mismatch", message="no", extra={"missing": ["id"]})


async def raw(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, and read the answer to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


async def test_the_status_is_found_wherever_it_is_known(settings: Settings) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        path = f"/upload/{upload_id}/status"
        in_redis = await serving.get(path)
        assert (in_redis[0], in_redis[1]["status"], in_redis[1]["progress"]) == (200, "uploaded", 0.0)
        await serving.redis.flushdb()
        assert await serving.get(path) == in_redis  # of the manifest
        await failed(serving, upload_id)
        status, document = await serving.get(path)  # of the row
        assert (status, document["status"], document["run"]) == (200, "failed", 1)
        assert document["error"] == {"code": "header_mismatch", "message": "no", "missing": ["id"]}
        assert document["sha256"] == in_redis[1]["sha256"]
        for unknown in (uuid4(), "no-id"):
            status, document = await serving.get(f"/upload/{unknown}/status")
            assert (status, document["code"]) == (404, "upload_not_found")


async def test_a_status_that_nobody_can_know_is_not_denied(settings: Settings) -> None:
    async with FaultProxy.before(settings.redis_url.get_secret_value()) as proxy:
        url = SecretStr(proxy.url(settings.redis_url.get_secret_value()))
        async with serve(change(settings, redis_url=url)) as serving:
            upload_id = await uploaded(serving)
            await proxy.refuse()
            status, document = await serving.get(f"/upload/{upload_id}/status")
            assert (status, document["status"]) == (200, "uploaded")
            status, document = await serving.get(f"/upload/{uuid4()}/status")
            assert (status, document["code"], document["cause"]) == (503, "not_ready", "queue_unavailable")


async def test_retry(settings: Settings, bucket: Bucket) -> None:
    async with serve(settings) as serving:
        upload_id = await uploaded(serving)
        retry = f"{serving.url}/upload/{upload_id}/retry"

        async def answered() -> tuple[int, dict[str, object]]:
            async with serving.client.post(retry) as answer:
                return answer.status, await answer.json(content_type=None)

        status, document = await answered()
        assert (status, document["code"], document["uploadStatus"]) == (409, "upload_not_failed", "uploaded")
        await failed(serving, upload_id)
        await serving.manifests.clear_pending(upload_id)
        status, document = await answered()
        assert (status, document["status"], document["error"]) == (202, "uploaded", None)
        assert f"pending/{upload_id}" in await asyncio.to_thread(bucket.keys)
        assert await serving.redis.exists(f"stream-api:loads:{upload_id}")
        run = await taken(serving, upload_id)
        status, document = await answered()
        assert (status, document["code"], document["uploadStatus"]) == (409, "upload_not_failed", "processing")
        await serving.ledger.fail(upload_id, run, code="header_mismatch", message="no", extra={})
        async with serving.client.post(f"{serving.url}/upload/{uuid4()}/retry") as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == (404, "upload_not_found")


async def test_health(settings: Settings) -> None:
    async def away() -> None:
        raise Failure("database_refused", "Check DATABASE_URL.")

    async def well() -> None:
        pass

    async with serve(settings) as serving:
        assert await serving.get("/healthz") == (200, {"status": "ok"})
        assert await serving.get("/readyz") == (200, {"status": "ready", "checks": {"storage": "ok", "database": "ok"}})
        async with serving.client.head(f"{serving.url}/healthz") as answer:
            assert answer.status == 200
    async with serve(settings, checks={"storage": well, "database": away}) as serving:
        status, document = await serving.get("/readyz")
        assert (status, document["code"], document["missing"]) == (503, "not_ready", ["database"])
        assert document["checks"] == {"storage": "ok", "database": "database_refused"}
        assert document["detail"] == "Cannot use the database: Check DATABASE_URL."


async def test_what_is_nowhere_says_what_there_is(settings: Settings) -> None:
    async with serve(settings) as serving:
        status, document = await serving.get("/uploads")
        assert (status, document["code"]) == (404, "not_found")
        assert "POST /upload" in document["detail"]
        async with serving.client.get(f"{serving.url}/upload") as answer:
            document = await answer.json(content_type=None)
            assert (answer.status, document["code"], answer.headers["Allow"]) == (405, "method_not_allowed", "POST")
            assert document["detail"] == "/upload takes POST, not GET."


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    ],
)
async def test_what_is_not_http(settings: Settings, request_bytes: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(settings) as serving:
        status, headers, body = await raw(serving.port, request_bytes)
        assert status == 400
        assert headers["content-type"].startswith("application/problem+json")
        document = json.loads(body)
        assert document["code"] == "bad_request"
        assert document["detail"].startswith("The request is not valid HTTP: ")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    "line", [b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 20_000, b"GET /" + b"x" * 20_000 + b" HTTP/1.1"]
)
async def test_a_head_that_is_too_long(settings: Settings, line: bytes) -> None:
    async with serve(settings) as serving:
        status, _, body = await raw(serving.port, line + b"\r\nHost: a\r\n\r\n")
        document = json.loads(body)
        assert (status, document["status"], document["code"]) == (431, 431, "bad_request")
        assert document["detail"] == "The request is not valid HTTP: its URL or a header is too long."


async def test_a_compressed_body_is_refused(settings: Settings, bucket: Bucket) -> None:
    async with serve(settings) as serving:
        for body in (gzip.compress(FORM), b"no gzip"):
            status, document = await serving.post(body, headers={**HEADERS, "Content-Encoding": "gzip"})
            assert (status, document["code"]) == (415, "content_encoding_unsupported")
        assert await asyncio.to_thread(bucket.keys) == []
        assert (await serving.post(FORM, headers={**HEADERS, "Content-Encoding": "identity"}))[0] == 202


async def test_a_form_without_a_file_names_what_came(settings: Settings) -> None:
    async with serve(settings) as serving:
        _, document = await serving.post(field("upload", b"x") + field("b", b"") + END, headers=HEADERS)
        assert "'b', 'upload'" in document["detail"]


async def test_a_file_in_a_field_of_another_name(settings: Settings, bucket: Bucket) -> None:
    async with serve(settings) as serving:
        # Larger than all text fields may be.
        other = file(b"id\n" + b"x" * 100_000).replace(b'name="file"', b'name="data"')
        status, document = await serving.post(other + END, headers=HEADERS)
        assert (status, document["code"]) == (422, "file_missing")
        assert "'data'" in document["detail"]
        assert list(document)[:5] == ["type", "title", "status", "detail", "code"]
        status, document = await serving.post(FORM.removesuffix(END) + other + END, headers=HEADERS)
        assert (status, document["code"]) == (422, "file_repeated")
        assert await asyncio.to_thread(bucket.keys) == []
