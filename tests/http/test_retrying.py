"""A retry that says what the upload should have said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from yarl import URL

from stream_api.config import Settings
from stream_api.dialects.dialect import Dialect
from stream_api.options import Options
from tests.http.serving import Serving, serve
from tests.load.conftest import HEADER, Loading, event, open_loading
from tests.support.settings import change

CSV = {"Content-Type": "text/csv"}


@dataclass
class Service:
    """The API, and a loader that loads when it is told to."""

    serving: Serving
    loading: Loading

    async def failed(self, content: bytes, query: str = "") -> UUID:
        """An upload whose load has failed."""
        status, document = await self.serving.post(content, headers=CSV, query=query)
        assert status == 202, document
        upload_id = UUID(document["uploadId"])
        assert (await self.load(upload_id))["status"] == "failed"
        return upload_id

    async def load(self, upload_id: UUID) -> dict[str, Any]:
        await self.loading.loader.load(upload_id)
        return await self.status(upload_id)

    async def status(self, upload_id: UUID) -> dict[str, Any]:
        return (await self.serving.get(f"/upload/{upload_id}/status"))[1]

    async def retry(self, upload_id: UUID, query: str = "") -> tuple[int, dict[str, Any]]:
        url = URL(f"{self.serving.url}/upload/{upload_id}/retry{query}", encoded=True)
        async with self.serving.client.post(url) as answer:
            return answer.status, await answer.json(content_type=None)


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Service]:
    small = change(settings, segment_bytes=64 * 1024, batch_bytes=64 * 1024, lanes=1)
    async with serve(small) as serving, open_loading(small) as loading:
        yield Service(serving, loading)


async def test_another_dialect_and_other_names(service: Service) -> None:
    content = (HEADER + event(1, source="a|b")).replace(b"source", b"shop").replace(b",", b"|").replace(b"a|b", b"a,b")
    upload_id = await service.failed(content, "?comment=%23&delimiter=,")
    # Each retry adds to what was said before it.
    status, document = await service.retry(upload_id, "?delimiter=pipe")
    assert (status, document["status"]) == (202, "uploaded")
    assert (document["dialect"]["delimiter"], document["dialect"]["comment"]) == ("|", "#")
    assert document["options"] == {}
    assert (await service.load(upload_id))["error"]["unknown"] == ["shop"]
    status, document = await service.retry(upload_id, "?mapping=%7B%22shop%22:%22source%22%7D&maxRejects=0")
    assert (status, document["options"]) == (202, {"mapping": {"shop": "source"}})
    # Whoever has to say the status says what is in force: from Redis, and from the row with the manifest.
    said = await service.status(upload_id)
    await service.serving.redis.flushdb()
    known = await service.status(upload_id)
    for each in (said, known):
        assert (each["dialect"], each["options"]) == (document["dialect"], document["options"])
        assert each["maxRejects"] == "0"
    ended = await service.load(upload_id)
    assert (ended["status"], ended["rowsInserted"]) == ("completed", 1), ended["error"]
    assert ended["dialect"]["delimiter"] == "|"
    assert await service.loading.fetch("SELECT source FROM webhook_events") == [("a,b",)]
    # The manifest stays what it was.
    row = await service.serving.ledger.get(upload_id)
    assert row is not None
    assert row.amendments is not None


async def test_what_was_found_is_found_again(service: Service) -> None:
    # The comment, which it did not know of, has misled it.
    content = b"#,,,\n#,,,\n" + (HEADER + event(1, payload="{}")).replace(b",", b";")
    upload_id = await service.failed(content)
    manifest = await service.serving.manifests.read(upload_id)
    assert manifest is not None
    assert manifest.dialect == Dialect(delimiter=",")
    assert (await service.retry(upload_id, "?comment=%23"))[1]["dialect"]["delimiter"] == ";"
    assert (await service.load(upload_id))["rowsInserted"] == 1
    assert manifest.options == Options()


async def test_with_rows_in_the_table_the_plan_stays(service: Service) -> None:
    content = (
        HEADER + b"".join(event(n) for n in range(1000)) + b"x,y\n" * 3 + b"".join(event(n) for n in range(1000, 2000))
    )
    upload_id = await service.failed(content, "?maxRejects=2")
    before = await service.status(upload_id)
    assert (before["error"]["code"], before["rowsInserted"] > 0) == ("too_many_rejects", True)
    status, document = await service.retry(upload_id, "?delimiter=;&header=false&maxRejects=3")
    assert (status, document["code"], document["fields"]) == (409, "plan_fixed", ["delimiter", "header"])
    assert await service.status(upload_id) == before
    # What rows may be missing is no part of it.
    assert (await service.retry(upload_id, "?maxRejects=3"))[0] == 202
    ended = await service.load(upload_id)
    assert (ended["status"], ended["rowsInserted"], ended["rowsFailed"]) == ("completed", 2000, 3)


async def test_rows_in_a_table_that_has_gone_bind_nobody(service: Service) -> None:
    content = HEADER + b"".join(event(n) for n in range(1000)) + b"x,y\n" * 3
    upload_id = await service.failed(content, "?maxRejects=2")
    create = "CREATE TABLE other (LIKE webhook_events); DROP TABLE webhook_events; ALTER TABLE other RENAME TO "
    await service.loading.execute(f"{create} webhook_events")
    status, _ = await service.retry(upload_id, "?mapping=%7B%22status%22:null%7D&maxRejects=3")
    assert status == 202
    assert (await service.load(upload_id))["rowsInserted"] == 1000
    assert await service.loading.fetch("SELECT DISTINCT status FROM webhook_events") == [(None,)]


async def test_what_is_collected_and_not_moved_binds_nobody(service: Service) -> None:
    content = HEADER + b"".join(event(n) for n in range(1000)) + b"x,y\n" * 3
    upload_id = await service.failed(content, "?maxRejects=2&mode=atomic")
    segments = "SELECT count(*) FROM stream_api.segments"
    assert await service.loading.value(segments) > 0
    status, document = await service.retry(upload_id, "?mapping=%7B%22status%22:null%7D&maxRejects=3")
    assert (status, document["progress"], document["options"]["mode"]) == (202, 0, "atomic")
    assert await service.loading.value(segments) == 0
    ended = await service.load(upload_id)
    assert (ended["status"], ended["rowsInserted"]) == ("completed", 1000), ended["error"]
    assert await service.loading.fetch("SELECT DISTINCT status FROM webhook_events") == [(None,)]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?delimiter=;;", "dialect_invalid"),
        ("?quote=;", "dialect_invalid"),  # the delimiter that was given
        ("?mode=fast", "option_invalid"),
        ("?dataset=webhook_events", "option_invalid"),
        ("?callbackUrl=http://x.test", "option_invalid"),
        ("?wait=1", "option_invalid"),
        ("?header=true&header=true", "field_repeated"),
        ("?maxRejects=many", "max_rejects_invalid"),
    ],
)
async def test_what_is_not_understood_changes_nothing(service: Service, query: str, code: str) -> None:
    upload_id = await service.failed(b"a;b\n", "?delimiter=;")
    before = await service.serving.ledger.get(upload_id)
    status, document = await service.retry(upload_id, query)
    assert (status, document["code"]) == (422, code)
    assert await service.serving.ledger.get(upload_id) == before


async def test_a_form_is_refused(service: Service) -> None:
    upload_id = await service.failed(b"a;b\n", "?delimiter=;")
    url = f"{service.serving.url}/upload/{upload_id}/retry"
    async with service.serving.client.post(url, data={"mode": "atomic"}) as answer:
        assert (answer.status, (await answer.json(content_type=None))["code"]) == (400, "bad_request")
    assert (await service.status(upload_id))["status"] == "failed"


async def test_only_a_failed_upload_takes_it(service: Service) -> None:
    status, document = await service.serving.post(HEADER + event(1), headers=CSV)
    upload_id = UUID(document["uploadId"])
    status, document = await service.retry(upload_id, "?delimiter=;")
    assert (status, document["code"], document["uploadStatus"]) == (409, "upload_not_failed", "uploaded")
    assert (await service.load(upload_id))["status"] == "completed"
    status, document = await service.retry(upload_id, "?maxRejects=5")
    assert (status, document["code"]) == (409, "upload_not_failed")
