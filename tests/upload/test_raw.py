"""A body that is the file itself, and parameters of the query in place of a form's fields."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from stream_api.config import Settings
from stream_api.dialects.dialect import Dialect
from stream_api.options import Options
from stream_api.storage.manifests import Manifest, read_manifest
from tests.conftest import Bucket
from tests.http.serving import Serving, serve
from tests.support.settings import change
from tests.upload.conftest import PART
from tests.upload.forms import END, HEADERS, field, file, raw_client, until
from tests.upload.test_refusals import check_nothing_left

CSV = {"Content-Type": "text/csv"}
BIG = os.urandom(2 * PART + 100)
HOOK = "https://x.test/y"


async def stored(serving: Serving, answer: tuple[int, dict[str, Any]], content: bytes) -> Manifest:
    """The manifest of an upload that is stored with this content."""
    status, document = answer
    assert status == 202, document
    manifest = await read_manifest(serving.store, UUID(document["uploadId"]))
    assert manifest is not None
    assert await serving.store.get(manifest.key) == content
    return manifest


async def pieces(content: bytes, size: int = 50_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.parametrize("size", [1, 1000, PART - 1, PART, PART + 1, len(BIG)])
@pytest.mark.parametrize("chunked", [True, False])
async def test_what_was_sent_is_what_is_stored(
    small_each_store: Settings, bucket_each_store: Bucket, size: int, chunked: bool
) -> None:
    content = BIG[:size]
    async with serve(small_each_store) as serving:
        answer = await serving.post(pieces(content) if chunked else content, headers=CSV)
        manifest = await stored(serving, answer, content)
        assert (manifest.size_bytes, manifest.content_type, manifest.file_name) == (size, "text/csv", None)
        budget = serving.uploads.budget
        assert (budget.used_bytes, budget.waiting, serving.uploads.active) == (0, 0, {})


@pytest.mark.parametrize(
    ("headers", "query", "name"),
    [
        ({"Content-Disposition": 'attachment; filename="a b.csv"'}, "", "a b.csv"),
        ({"Content-Disposition": "attachment; filename*=UTF-8''%C5%81%C3%B3d%C5%BA.csv"}, "", "Łódź.csv"),
        ({"Content-Disposition": "attachment; ;; nonsense"}, "", None),
        ({}, "?fileName=%C5%81.csv", "Ł.csv"),
        ({"Content-Disposition": "attachment; filename=a.csv"}, "?fileName=b.csv", "b.csv"),
    ],
)
async def test_the_name_of_the_file(settings: Settings, headers: dict[str, str], query: str, name: str | None) -> None:
    async with serve(settings) as serving:
        manifest = await stored(serving, await serving.post(b"a\n", headers=CSV | headers, query=query), b"a\n")
        assert (manifest.file_name, manifest.fields) == (name, {})
        # A form may say it too.
        form = await serving.post(file(b"a\n") + field("fileName", b"c.csv") + END, headers=HEADERS)
        assert (await stored(serving, form, b"a\n")).file_name == "c.csv"


@pytest.mark.parametrize("kind", ["application/gzip", "application/octet-stream", "Text/CSV; charset=utf-8", None])
async def test_a_file_is_what_its_content_is(settings: Settings, kind: str | None) -> None:
    content = gzip.compress(b"a;b\n1;2\n")
    async with serve(settings) as serving, raw_client(serving.port) as client:
        lines = ["POST /upload HTTP/1.1", "Host: test", f"Content-Length: {len(content)}"]
        lines += [] if kind is None else [f"Content-Type: {kind}"]
        await client.send(("\r\n".join(lines) + "\r\n\r\n").encode() + content)
        status, _, document = await client.answer()
        manifest = await stored(serving, (status, document), content)
        assert manifest.dialect == Dialect(delimiter=";", compression="gzip")
        assert manifest.content_type == (kind or "application/octet-stream")


QUERY = (
    "?dataset=webhook_events&delimiter=;&quote=none&maxRejects=5%25&callbackUrl=https%3A%2F%2Fx.test%2Fy&wait=0"
    "&header=false&mapping=%7B%22a%22%3Anull%7D&mode=atomic&key=b,c&other=%C3%A4+x"
)


@pytest.mark.parametrize("form", [True, False])
async def test_every_field_may_stand_in_the_query(settings: Settings, form: bool) -> None:
    content = b"a;b;c\n"
    body, headers = (file(content) + END, HEADERS) if form else (content, CSV)
    async with serve(settings) as serving:
        manifest = await stored(serving, await serving.post(body, headers=headers, query=QUERY), content)
        assert (manifest.dataset, manifest.max_rejects, manifest.callback_url) == ("webhook_events", "5%", HOOK)
        assert manifest.dialect == Dialect(delimiter=";", quote=None)
        assert manifest.options == Options(header=False, mapping={"a": None}, mode="atomic", key=("b", "c"))
        assert manifest.fields.keys() == {"delimiter", "quote", "header", "mapping", "mode", "key", "other"}
        assert manifest.fields["other"] == "ä x"


@pytest.mark.parametrize(
    ("query", "body", "status", "code"),
    [
        ("?delimiter=;", field("delimiter", b";") + file(BIG) + END, 422, "field_repeated"),
        ("?delimiter=;", file(BIG) + field("delimiter", b";") + END, 422, "field_repeated"),
        ("?delimiter=;&delimiter=;", BIG, 422, "field_repeated"),
        ("?delimiter=;;", BIG, 422, "dialect_invalid"),
        ("?delimiter=;&quote=;", BIG, 422, "dialect_invalid"),
        ("?mode=fast", BIG, 422, "option_invalid"),
        ("?dataset=nope", BIG, 422, "dataset_unknown"),
        ("?maxRejects=x", BIG, 422, "max_rejects_invalid"),
        ("?callbackUrl=ftp://x", BIG, 422, "callback_url_invalid"),
        ("?file=x", BIG, 400, "bad_request"),
        ("?" + "&".join(f"a{n}=" for n in range(65)), BIG, 413, "too_many_fields"),
        ("?" + "&".join(f"a{n}=" for n in range(64)), file(BIG) + END, 413, "too_many_fields"),
        ("?a=" + "x" * 4000, field("b", b"x" * 62_000) + file(BIG) + END, 413, "field_too_large"),
        ("", b"", 422, "file_empty"),
    ],
    ids=itertools.count(),
)
async def test_refused(  # noqa: PLR0917
    small: Settings, bucket: Bucket, query: str, body: bytes, status: int, code: str
) -> None:
    headers = HEADERS if body.endswith(END) else CSV
    async with serve(small) as serving:
        answered, document = await serving.post(body, headers=headers, query=query)
        assert (answered, document["code"]) == (status, code), document
        await check_nothing_left(serving, bucket)


async def test_a_parameter_that_is_no_text(small: Settings, bucket: Bucket) -> None:
    async with serve(small) as serving, raw_client(serving.port) as client:
        await client.send(b"POST /upload?a=\xff HTTP/1.1\r\nHost: a\r\nContent-Type: text/csv\r\n")
        await client.send(b"Content-Length: 2\r\n\r\na\n")
        status, _, document = await client.answer()
        assert (status, document["code"]) == (400, "bad_request")
        await check_nothing_left(serving, bucket)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize("end", ["gone", "half closed"])
@pytest.mark.parametrize("sent", [0, 10, PART, 2 * PART + 50])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_that_breaks_off_is_not_stored(
    small: Settings, bucket: Bucket, end: str, sent: int, chunked: bool
) -> None:
    async with serve(small) as serving:
        async with raw_client(serving.port) as client:
            await client.start(None if chunked else len(BIG), kind="text/csv")
            # A chunk that is whole, and the file of whole lines: only the end of the body is missing.
            await client.send(b"" if not sent else chunk(BIG[:sent]) if chunked else BIG[:sent])
            await until(lambda: serving.uploads.active)
            (progress,) = serving.uploads.active.values()
            await until(lambda: progress.stream.received_bytes == sent)
            if end == "half closed":
                client.writer.write_eof()
                await client.reader.read()
        await until(lambda: not serving.uploads.active)
        await check_nothing_left(serving, bucket)


async def test_a_chunk_that_is_no_chunk(small: Settings, bucket: Bucket) -> None:
    async with serve(small) as serving:
        async with raw_client(serving.port) as client:
            await client.start(None, kind="text/csv")
            await client.send(chunk(BIG[: PART + 1]) + b"nonsense\r\n")
            status, _, document = await client.answer()
            assert (status, document["code"]) == (400, "upload_incomplete")
            assert await client.reader.read() == b""
        await check_nothing_left(serving, bucket)


async def test_a_body_over_the_limit(small: Settings, bucket: Bucket) -> None:
    async with serve(small, max_file_bytes=2 * PART + 100) as serving:
        status, document = await serving.post(pieces(BIG + b"x"), headers=CSV)
        assert (status, document["code"]) == (413, "file_too_large")
        async with raw_client(serving.port) as client:
            await client.start(100 * PART, kind="text/csv")
            status, _, document = await client.answer()
        assert (status, document["code"]) == (413, "file_too_large")
        await check_nothing_left(serving, bucket)


async def test_a_slow_client_makes_room_for_others(small: Settings, bucket: Bucket) -> None:
    slow = change(small, upload_budget_bytes=PART, slow_client_grace_seconds=0.4, min_upload_bytes_per_second=1 << 20)
    async with serve(slow) as serving, raw_client(serving.port) as client:
        await client.start(len(BIG), kind="text/csv")
        await client.send(b"x")
        await until(lambda: serving.uploads.budget.used_bytes)
        other = asyncio.create_task(serving.post(BIG, headers=CSV))
        status, _, document = await client.answer()
        assert (status, document["code"]) == (408, "client_too_slow")
        await stored(serving, await other, BIG)


async def test_the_same_again_however_it_is_said(small: Settings) -> None:
    keyed = {"Idempotency-Key": "one"}
    query = "?delimiter=%3B&header=yes&callbackUrl=https://x.test/y"
    fields = field("delimiter", b"semicolon") + field("header", b"true") + field("callbackUrl", HOOK.encode())
    async with serve(small) as serving:
        first = await serving.post(BIG, headers=CSV | keyed, query=query)
        assert first[0] == 202
        assert await serving.post(file(BIG) + fields + END, headers=HEADERS | keyed) == first
        assert await serving.post(pieces(BIG), headers=CSV | keyed, query=query + "&fileName=x") == first
        for other, differs in {
            query.replace("yes", "no"): ["header"],
            query + "&mode=atomic": ["mode"],
            query.replace("%3B", "|"): ["delimiter"],
            "": ["callbackUrl", "delimiter", "header"],
        }.items():
            status, document = await serving.post(BIG, headers=CSV | keyed, query=other)
            assert (status, document["code"]) == (422, "idempotency_key_reused")
            assert document["differs"] == differs
        status, document = await serving.post(BIG[:-1], headers=CSV | keyed, query=query)
        assert (status, document["differs"]) == (422, ["file"])


async def test_only_post(settings: Settings) -> None:
    async with serve(settings) as serving, serving.client.put(f"{serving.url}/upload", data=b"a\n") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
