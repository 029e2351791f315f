"""Every form that is refused gets a clear answer and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os

import pytest

from stream_api.config import Settings
from tests.conftest import Bucket
from tests.http.serving import Serving, serve
from tests.upload.conftest import PART
from tests.upload.forms import BOUNDARY, END, HEADERS, field, file, raw_client, until

BIG = os.urandom(2 * PART + 100)


async def check_nothing_left(serving: Serving, bucket: Bucket) -> None:
    """Nothing in the bucket, no room taken, and the next upload works."""
    assert await asyncio.to_thread(bucket.keys) == []
    assert await asyncio.to_thread(bucket.open_multipart_uploads) == []
    budget = serving.uploads.budget
    assert (budget.used_bytes, budget.waiting, serving.uploads.leftovers.count) == (0, 0, 0)
    assert serving.uploads.active == {}
    status, _ = await serving.post(file(BIG) + END, headers=HEADERS)
    assert status == 202


REFUSED = {
    "second file": (file(BIG) + file(b"x") + END, 422, "file_repeated"),
    "no file": (field("a", b"b") + END, 422, "file_missing"),
    "no fields": (END, 422, "file_missing"),
    "empty file": (file(b"") + END, 422, "file_empty"),
    "bad callbackUrl after the file": (
        file(BIG) + field("callbackUrl", b"ftp://x/y") + END,
        422,
        "callback_url_invalid",
    ),
    "bad callbackUrl before the file": (
        field("callbackUrl", b"/just/a/path") + file(BIG) + END,
        422,
        "callback_url_invalid",
    ),
    "callbackUrl with a password": (
        field("callbackUrl", b"https://user:geheim@example.com/") + file(BIG) + END,
        422,
        "callback_url_invalid",
    ),
    "callbackUrl with a user": (
        file(BIG) + field("callbackUrl", b"https://user@example.com/") + END,
        422,
        "callback_url_invalid",
    ),
    "unknown dataset": (file(BIG) + field("dataset", b"nope") + END, 422, "dataset_unknown"),
    "dryRun misspelled": (field("dryrun", b"true") + file(BIG) + END, 422, "option_invalid"),
    "maxRejects misspelled after the file": (file(BIG) + field("max_rejects", b"0") + END, 422, "option_invalid"),
    "bad delimiter before the file": (
        field("delimiter", b"::") + file(BIG) + END,
        422,
        "dialect_invalid",
    ),
    "bad encoding after the file": (file(BIG) + field("encoding", b"utf-7") + END, 422, "dialect_invalid"),
    "one character with two meanings": (
        field("delimiter", b"#") + file(BIG) + field("comment", b"#") + END,
        422,
        "dialect_invalid",
    ),
    "a delimiter that is the quote": (file(BIG) + field("delimiter", b'"') + END, 422, "dialect_invalid"),
    "damaged gzip": (file(b"\x1f\x8b" + bytes(100)) + END, 422, "compression_invalid"),
    "zstd with a window of 64 MiB": (
        file(b"\x28\xb5\x2f\xfd\x00" + bytes([16 << 3]) + BIG) + END,
        422,
        "compression_window",
    ),
    "base64 file": (
        field("file", b"YQ==", "Content-Transfer-Encoding: base64", file_name="a") + END,
        415,
        "field_encoding_unsupported",
    ),
    "base64 text after the file": (
        file(BIG) + field("a", b"YQ==", "Content-Transfer-Encoding: BASE64") + END,
        415,
        "field_encoding_unsupported",
    ),
    "quoted-printable": (
        field("a", b"YQ==", "Content-Transfer-Encoding: quoted-printable") + file(BIG) + END,
        415,
        "field_encoding_unsupported",
    ),
    "repeated field": (file(BIG) + field("a", b"1") + field("a", b"2") + END, 422, "field_repeated"),
    "large text": (file(BIG) + field("a", b"x" * 70_000) + END, 413, "field_too_large"),
    "large texts": (
        b"".join(field(f"a{n}", b"x" * 30_000) for n in range(3)) + file(BIG) + END,
        413,
        "field_too_large",
    ),
    "many fields": (file(BIG) + b"".join(field(f"a{n}", b"") for n in range(70)) + END, 413, "too_many_fields"),
    "not UTF-8": (file(BIG) + field("a", b"\xff") + END, 400, "bad_request"),
    "no name": (file(BIG) + field("", b"x") + END, 400, "malformed_multipart"),
    "nested": (
        file(BIG) + field("a", b"x", "Content-Type: multipart/mixed; boundary=b") + END,
        400,
        "malformed_multipart",
    ),
    "long preamble": (b"x" * 50 + b"\r\n" + b"preamble\r\n" * 20_000 + file(b"a") + END, 400, "malformed_multipart"),
    "long line in the preamble": (b"x" * 1_000_000 + b"\r\n" + file(b"a") + END, 400, "malformed_multipart"),
    "long header": (
        b"--" + BOUNDARY + b"\r\nX: " + b"y" * 20_000 + b"\r\n\r\nx\r\n" + END,
        400,
        "malformed_multipart",
    ),
    "no boundary at the end": (file(BIG)[:-2], 400, "upload_incomplete"),
    "other boundary": (file(BIG).replace(BOUNDARY, b"-" * 30) + END, 400, "malformed_multipart"),
    "ends after the file": (file(BIG), 400, "upload_incomplete"),
    "charset trick": (
        b"--" + BOUNDARY + b'\r\nContent-Disposition: form-data; name="_charset_"\r\n\r\n' + b"x" * 100 + b"\r\n" + END,
        400,
        "malformed_multipart",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused(small: Settings, bucket: Bucket, name: str) -> None:
    body, status, code = REFUSED[name]
    async with serve(small) as serving:
        answered, document = await serving.post(body, headers=HEADERS)
        assert (answered, document["code"], document["status"]) == (status, code, status)
        assert document["instance"] == "/upload"
        assert document["title"]
        assert document["detail"]
        await check_nothing_left(serving, bucket)


@pytest.mark.parametrize("name", ["second file", "bad callbackUrl after the file", "ends after the file"])
async def test_refused_on_each_store(small_each_store: Settings, bucket_each_store: Bucket, name: str) -> None:
    body, status, code = REFUSED[name]
    async with serve(small_each_store) as serving:
        answered, document = await serving.post(body, headers=HEADERS)
        assert (answered, document["code"]) == (status, code)
        await check_nothing_left(serving, bucket_each_store)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "application/json; a=b", "multipart/mixed", "x"])
async def test_neither_a_form_nor_a_file(small: Settings, bucket: Bucket, kind: str) -> None:
    async with serve(small) as serving:
        status, document = await serving.post(b"a,b\n", headers={"Content-Type": kind})
        assert (status, document["code"]) == (415, "content_type_unsupported")
        assert {"text/csv", "multipart/form-data"} < set(document["allowed"])
        await check_nothing_left(serving, bucket)


async def test_a_form_without_a_boundary(small: Settings, bucket: Bucket) -> None:
    async with serve(small) as serving:
        status, document = await serving.post(b"x", headers={"Content-Type": "multipart/form-data"})
        assert (status, document["code"]) == (400, "malformed_multipart")
        await check_nothing_left(serving, bucket)


async def test_a_body_that_says_it_is_too_long_is_refused_at_once(small: Settings, bucket: Bucket) -> None:
    async with serve(small, max_file_bytes=3 * PART) as serving:
        async with raw_client(serving.port) as client:
            await client.start(100 * PART)
            status, headers, document = await client.answer()
        assert (status, document["code"], document["limitBytes"]) == (413, "file_too_large", 3 * PART)
        assert "STREAM_API_PART_BYTES" in document["detail"]
        assert headers["content-type"].startswith("application/problem+json")
        assert headers["connection"] == "close"
        async with raw_client(serving.port) as client:
            await client.start(100 * PART, Expect="100-continue")
            status, _, document = await client.answer()
        assert (status, document["code"]) == (413, "file_too_large")
        await check_nothing_left(serving, bucket)


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_that_turns_out_too_long_is_refused_when_it_gets_there(
    small: Settings, bucket: Bucket, chunked: bool
) -> None:
    async with serve(small, max_file_bytes=2 * PART + 100) as serving:
        body = file(BIG + b"x") + END

        async def pieces() -> object:
            for start in range(0, len(body), 1 << 16):
                yield body[start : start + (1 << 16)]

        status, document = await serving.post(pieces() if chunked else body, headers=HEADERS)
        assert (status, document["code"]) == (413, "file_too_large")
        await check_nothing_left(serving, bucket)


async def test_continue_is_sent_to_who_waits_for_it(small: Settings) -> None:
    async with serve(small) as serving, raw_client(serving.port) as client:
        body = file(b"a,b\n") + END
        await client.start(len(body), Expect="100-continue")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        status, headers, document = await client.answer()
        assert status == 202
        assert headers["location"] == document["statusUrl"] == f"/upload/{document['uploadId']}/status"


async def test_names_that_are_not_utf_8_and_an_epilogue(small: Settings) -> None:
    async with serve(small) as serving:
        body = field("file", b"a", file_name="PLACE").replace(b"PLACE", b"gr\xf6\xdfe.csv") + field("\xe9", b"1") + END
        status, _ = await serving.post(b"preamble\r\n" + body + b"epilogue\r\n" * 1000, headers=HEADERS)
        assert status == 202


async def test_a_client_that_disappears_leaves_nothing(small_each_store: Settings, bucket_each_store: Bucket) -> None:
    async with serve(small_each_store) as serving:
        for sent in (0, 10, 1000, PART, 2 * PART + 50):
            body = file(BIG)
            async with raw_client(serving.port) as client:
                await client.start(len(body) + len(END))
                await client.send(body[:sent])
                await until(lambda: serving.uploads.active)
                (progress,) = serving.uploads.active.values()
                # What is not a whole line yet has not been taken from aiohttp.
                await until(lambda: progress.stream.received_bytes >= sent - 100)  # noqa: B023
            await until(lambda: not serving.uploads.active)
        await check_nothing_left(serving, bucket_each_store)
