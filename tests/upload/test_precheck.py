"""A header that does not fit its table is refused while the upload starts, wherever that can be known by then."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from backports import zstd
from pydantic import SecretStr

from stream_api.config import Settings
from stream_api.datasets import cache
from stream_api.datasets.dataset import Dataset
from stream_api.dev.postgres import Postgres
from stream_api.dialects.detection import HEAD_BYTES, head_bytes
from tests.conftest import Bucket
from tests.http.serving import Serving, serve
from tests.support.faults import FaultProxy
from tests.support.settings import change
from tests.upload.conftest import PART
from tests.upload.forms import END, HEADERS, field, file, raw_client

CSV = {"Content-Type": "text/csv"}
TO_SHOP = field("dataset", b"shop")
DATASETS = {
    "shop": Dataset(name="shop", table="shop"),
    "gone": Dataset(name="gone", table="gone"),
    "by_label": Dataset(name="by_label", table="shop", conflict="update", key=("label",)),
    "webhook_events": Dataset(name="webhook_events", table="webhook_events"),
}
#: What a client that sends no more has to have sent: a form's boundary could begin in the last bytes.
MORE = 8 * 1024


def long(header: bytes, size: int = PART + 1000) -> bytes:
    return header + (b"1,2,3\n" * (size // 6 + 1))[: size - len(header)]


@asynccontextmanager
async def shop(settings: Settings, postgres: Postgres, **options: Any) -> AsyncIterator[Serving]:
    """The service, and a table shop (id, label, price)."""
    name = settings.database_url.get_secret_value().rsplit("/", 1)[1]
    sql = "CREATE TABLE IF NOT EXISTS shop (id int PRIMARY KEY, label text NOT NULL, price numeric)"
    await asyncio.to_thread(postgres.execute, sql, database=name)
    async with serve(settings, checked=True, datasets=DATASETS, **options) as serving:
        yield serving


async def alter(settings: Settings, postgres: Postgres, sql: str) -> None:
    name = settings.database_url.get_secret_value().rsplit("/", 1)[1]
    await asyncio.to_thread(postgres.execute, sql, database=name)


async def check_nothing_left(serving: Serving, bucket: Bucket) -> None:
    assert await asyncio.to_thread(bucket.keys) == []
    assert await asyncio.to_thread(bucket.open_multipart_uploads) == []
    budget = serving.uploads.budget
    assert (budget.used_bytes, budget.waiting, serving.uploads.leftovers.count) == (0, 0, 0)
    assert serving.uploads.active == {}


BAD = b"id,labl,price,Price\n"


def misfit(document: dict[str, Any]) -> dict[str, Any]:
    assert (document["status"], document["code"]) == (422, "header_mismatch"), document
    return {name: document[name] for name in ("missing", "unknown", "repeated", "nearest")}


WHY = {"missing": ["label"], "unknown": ["labl"], "repeated": ["price"], "nearest": {"labl": ["label"]}}


@pytest.mark.parametrize("compress", [None, gzip.compress, zstd.compress], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("form", [True, False])
async def test_a_client_that_waits_after_the_head_is_answered(
    small: Settings, bucket: Bucket, postgres: Postgres, form: bool, compress: Any
) -> None:
    # Of which zstd can make little: its blocks are long.
    content = BAD + b"".join(b"%d,%s,1,2\n" % (n, os.urandom(40).hex().encode()) for n in range(40_000))
    content = content if compress is None else compress(content)
    async with shop(small, postgres) as serving, raw_client(serving.port) as client:
        if form:
            begin = TO_SHOP + file(content)[:-2][: -len(content)]
            await client.start(len(TO_SHOP + file(content) + END))
        else:
            begin = b""
            await client.start(len(content), query="?dataset=shop", kind="text/csv")
        await client.send(begin + content[: head_bytes(content) + MORE])
        status, headers, document = await client.answer()
        assert misfit(document) == WHY
        assert (status, headers["connection"]) == (422, "close")
        assert ("have to come before the file" in document["detail"]) == form
        await check_nothing_left(serving, bucket)


FORMS = {
    "one that is all in the head": TO_SHOP + file(BAD + b"1,a,2,3\n"),
    "a header without an end": TO_SHOP + file(BAD.strip()),
    "dataset after a file of one part": file(BAD + b"1,a,2,3\n") + TO_SHOP,
    "dataset after a file of several": file(long(BAD)) + TO_SHOP,
    "dialect after a file that was judged": TO_SHOP + file(long(b"id,label,price\n")) + field("delimiter", b";"),
    "columns after it": TO_SHOP + file(long(b"id,label,price\n")) + field("columns", b"id,labl,price"),
    "no dataset": file(long(BAD)),
}


@pytest.mark.parametrize("name", FORMS)
async def test_what_cannot_be_known_earlier_is_refused_at_the_end(
    small: Settings, bucket: Bucket, postgres: Postgres, name: str
) -> None:
    async with shop(small, postgres) as serving:
        status, document = await serving.post(FORMS[name] + END, headers=HEADERS)
        assert (status, document["code"]) == (422, "header_mismatch")
        assert "before the file" not in document["detail"]
        await check_nothing_left(serving, bucket)
        # The room is free, and what fits is taken.
        good = TO_SHOP + file(long(b"price,ID,label\n")) + field("mode", b"append") + END
        assert (await serving.post(good, headers=HEADERS))[0] == 202


@pytest.mark.parametrize(
    ("query", "content", "code"),
    [
        ("?dataset=gone", long(b"id\n"), "table_missing"),
        ("?dataset=by_label", long(b"id,label\n"), "conflict_key_invalid"),
        ("?dataset=shop&conflict=skip&key=price", long(b"id,label\n"), "conflict_key_invalid"),
        ("?dataset=shop", b"PK\x03\x04" + os.urandom(PART), "encoding_unsupported"),
        ("?dataset=shop", b"\n" * 100, "header_mismatch"),
        ("?dataset=shop", long(b"id,label," + b"," * 2000 + b"\n"), "too_many_columns"),
        ("?dataset=shop&mapping={%22id%22:%22nope%22}", long(b"id,label\n"), "option_invalid"),
    ],
    ids=itertools.count(),
)
async def test_whatever_the_load_would_fail_with(  # noqa: PLR0917
    small: Settings, bucket: Bucket, postgres: Postgres, query: str, content: bytes, code: str
) -> None:
    async with shop(small, postgres) as serving:
        status, document = await serving.post(content, headers=CSV, query=query)
        assert (status, document["code"]) == (422, code), document
        await check_nothing_left(serving, bucket)


@pytest.mark.parametrize(
    ("query", "content"),
    [
        ("?dataset=shop&header=false", b"1,a,2\n"),
        ("?dataset=shop&columns=id,label,other&mapping={%22other%22:null}", b"x,y,z\n1,a,2\n"),
        ("?dataset=shop&delimiter=;", b"id;label\n1;a,b\n"),
        # It goes on beyond the head, so the load will see.
        ("?dataset=shop", b"id,label,pri" + b"x" * 2 * HEAD_BYTES + b"\n1,2,3\n"),
        ("?dataset=shop", gzip.compress(b"labl")),
    ],
    ids=itertools.count(),
)
async def test_what_fits_or_cannot_be_known_is_taken(
    settings: Settings, postgres: Postgres, query: str, content: bytes
) -> None:
    async with shop(settings, postgres) as serving:
        status, document = await serving.post(content, headers=CSV, query=query)
        assert status == 202, document


async def test_nobody_is_refused_for_what_the_table_was(settings: Settings, postgres: Postgres) -> None:
    async with shop(settings, postgres) as serving:

        async def answer(header: bytes) -> int:
            return (await serving.post(header + b"\n", headers=CSV, query="?dataset=shop"))[0]

        assert await answer(b"id,label") == 202
        assert await answer(b"id,label,colour") == 422
        await alter(settings, postgres, "ALTER TABLE shop ADD colour text")
        assert await answer(b"id,label,colour") == 202
        await alter(settings, postgres, "DROP TABLE shop")
        assert await answer(b"id,label,color") == 422
        assert await answer(b"id,label") == 422  # the copy went with the table
        await alter(settings, postgres, "CREATE TABLE shop (x text)")
        assert await answer(b"x") == 202


@asynccontextmanager
async def shop_behind(settings: Settings, postgres: Postgres) -> AsyncIterator[tuple[Serving, FaultProxy]]:
    url = settings.database_url.get_secret_value()
    proxy = FaultProxy.before(url)
    behind = change(settings, database_url=SecretStr(proxy.url(url)))
    async with proxy, shop(behind, postgres) as serving:
        yield serving, proxy


async def test_with_postgres_down_what_may_fit_is_taken(settings: Settings, postgres: Postgres) -> None:
    async with shop_behind(settings, postgres) as (serving, proxy):

        async def answer(content: bytes) -> int:
            return (await serving.post(content, headers=CSV, query="?dataset=shop"))[0]

        await proxy.refuse()
        assert await answer(BAD) == 202
        assert await answer(b"PK\x03\x04" + b"x" * 100) == 422  # no table is needed to see that
        await proxy.restore()
        assert await answer(BAD) == 422
        assert await answer(b"id,label\n") == 202
        await proxy.refuse()
        # There is a copy by now; by a copy alone nobody is refused.
        assert await answer(BAD) == 202


async def test_with_a_postgres_that_hangs_nobody_waits_for_long(
    settings: Settings, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LOOK_SECONDS", 0.2)
    patient = change(settings, database_connect_timeout_seconds=30.0)
    async with shop_behind(patient, postgres) as (serving, proxy):
        await proxy.stall()
        async with asyncio.timeout(10):
            for _ in range(20):
                assert (await serving.post(BAD, headers=CSV, query="?dataset=shop"))[0] == 202
        assert proxy.accepted == 1
        await proxy.restore()
