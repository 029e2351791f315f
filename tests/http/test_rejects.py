"""`GET /upload/{id}/rejects`, with real servers behind it and a worker's loader beside it."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import aiohttp
import pytest

from stream_api.config import Settings
from stream_api.ledger.expiry import Expiry
from tests.http.serving import Serving, serve
from tests.load.conftest import HEADER, Loading, event, open_loading
from tests.load.test_rejects import half_bad
from tests.support.faults import FaultProxy
from tests.support.settings import change
from tests.upload.forms import END, HEADERS, field, file


async def get(serving: Serving, path: str) -> tuple[int, str, bytes]:
    """Status, `Rejects-Complete` and body."""
    async with serving.client.get(serving.url + path) as answer:
        return answer.status, answer.headers.get("Rejects-Complete", ""), await answer.read()


async def loaded(loading: Loading, data: bytes) -> UUID:
    manifest = await loading.stored(data, segment_bytes=400_000)
    await loading.load(manifest)
    return manifest.upload_id


async def test_the_rejects_of_an_upload(settings: Settings) -> None:
    data, bad = half_bad(4000)
    async with serve(settings) as serving, open_loading(settings) as loading:
        upload_id = await loaded(loading, data)
        status, complete, body = await get(serving, f"/upload/{upload_id}/rejects")
        assert (status, complete) == (200, "true")
        lines = body.decode().split("\r\n")
        assert lines[0] == "line,byteOffset,column,code,reason,record,encoding"
        assert lines[1].startswith(
            f"3,{len(HEADER + event(0))},amount,invalid_number,"
            '"invalid input syntax for type numeric: ""x7919""","00000000-'
        )
        assert (len(lines), lines[-1]) == (2002, "")
        assert await get(serving, f"/upload/{upload_id}/rejects?format=original") == (200, "true", bad)
        document = (await serving.get(f"/upload/{upload_id}/status"))[1]
        assert document["rejectsUrl"] == f"/upload/{upload_id}/rejects"
        assert document["rejected"] == {"invalid_number": 2000}
        assert [each["line"] for each in document["rejects"]] == list(range(3, 23, 2))
        assert document["rejects"][0] == {
            "line": 3,
            "byteOffset": len(HEADER + event(0)),
            "column": "amount",
            "code": "invalid_number",
            "reason": 'invalid input syntax for type numeric: "x7919"',
        }


async def test_an_upload_without_rejects_and_one_that_waits(settings: Settings) -> None:
    async with serve(settings) as serving, open_loading(settings) as loading:
        empty = b"line,byteOffset,column,code,reason,record,encoding\r\n"
        upload_id = await loaded(loading, HEADER + event(1))
        assert await get(serving, f"/upload/{upload_id}/rejects") == (200, "true", empty)
        assert await get(serving, f"/upload/{upload_id}/rejects?format=original") == (200, "true", HEADER)
        manifest = await loading.stored(HEADER + event(2))
        assert await get(serving, f"/upload/{manifest.upload_id}/rejects") == (200, "false", empty)
        path = f"/upload/{manifest.upload_id}/rejects?format=original"
        status, document = await serving.get(path)
        assert (status, document["code"]) == (409, "header_not_loaded")


async def test_what_is_not_there(settings: Settings) -> None:
    async with serve(settings) as serving, open_loading(settings) as loading:
        for path, code in [
            (f"/upload/{uuid4()}/rejects", (404, "upload_not_found")),
            ("/upload/nonsense/rejects", (404, "upload_not_found")),
            (f"/upload/{uuid4()}/rejects?format=xlsx", (400, "bad_request")),
        ]:
            status, document = await serving.get(path)
            assert (status, document["code"]) == code
        upload_id = await loaded(loading, HEADER + event(1, id="x"))
        await loading.execute("UPDATE stream_api.uploads SET ended_at = ended_at - interval '8 days'")
        await Expiry(loading.pool).expire(retention_seconds=7 * 24 * 3600, limit=10)
        status, document = await serving.get(f"/upload/{upload_id}/rejects")
        assert (status, document["code"]) == (410, "upload_gone")


async def test_an_object_that_has_gone_cuts_the_answer(settings: Settings) -> None:
    async with serve(settings) as serving, open_loading(settings) as loading:
        upload_id = await loaded(loading, half_bad(6000)[0])
        last = await loading.value(
            "SELECT rejects_key FROM stream_api.segments WHERE rejects_key IS NOT NULL ORDER BY number DESC LIMIT 1"
        )
        await loading.store.delete(last)
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)):
            await get(serving, f"/upload/{upload_id}/rejects")
        # The service works on.
        assert (await serving.get(f"/upload/{upload_id}/status"))[0] == 200


async def test_a_database_that_is_away(settings: Settings) -> None:
    dsn = settings.database_url.get_secret_value()
    async with FaultProxy.before(dsn) as postgres:
        await postgres.refuse()
        async with serve(change(settings, database_url=postgres.url(dsn))) as serving:
            status, document = await serving.get(f"/upload/{uuid4()}/rejects")
            assert (status, document["code"]) == (503, "database_unavailable")


async def test_a_client_that_does_not_read_holds_nothing_but_its_connection(settings: Settings) -> None:
    data = HEADER + b"".join(event(number, id="x" * 20_000) for number in range(1500))
    async with serve(settings) as serving, open_loading(settings) as loading:
        manifest = await loading.stored(data)
        assert (await loading.load(manifest)).rows_failed == 1500
        reads = 0
        open_range = serving.store.open_range

        async def counted(*args: object, **named: object) -> object:
            nonlocal reads
            reads += 1
            return await open_range(*args, **named)  # type: ignore[arg-type]

        serving.store.open_range = counted  # type: ignore[method-assign, assignment]
        reader, writer = await asyncio.open_connection("127.0.0.1", serving.port, limit=1024)
        writer.write(f"GET /upload/{manifest.upload_id}/rejects?format=original HTTP/1.0\r\n\r\n".encode())
        await reader.readexactly(100)
        # While it does not read, the database's pool and the store are free for others, however often.
        for _ in range(20):
            assert (await serving.get(f"/upload/{manifest.upload_id}/status"))[0] == 200
        assert reads < 15
        body = await reader.read(-1)
        assert body.endswith(event(1499, id="x" * 20_000))
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("value", "stored"),
    [("100", "100"), (" 5 % ", "5%"), ("2.50%", "2.5%"), ("many", None), ("101%", None), ("-1", None)],
)
async def test_the_field_max_rejects(settings: Settings, value: str, stored: str | None) -> None:
    async with serve(settings) as serving:
        form = field("maxRejects", value.encode()) + file(b"id,event_type\n") + END
        status, document = await serving.post(form, headers=HEADERS)
        if stored is None:
            assert (status, document["code"]) == (422, "max_rejects_invalid")
        else:
            manifest = await serving.manifests.read(UUID(document["uploadId"]))
            assert manifest is not None
            assert (status, manifest.max_rejects, manifest.fields) == (202, stored, {})
