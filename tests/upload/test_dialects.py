"""The dialect of an upload: found from the first bytes of its file, whatever chunks they come in, and stored."""

from __future__ import annotations

import gzip
import itertools
import random
from uuid import UUID

import msgspec
import pytest
from backports import zstd

from stream_api.config import Settings
from stream_api.dialects.detection import HEAD_BYTES
from stream_api.dialects.dialect import Dialect
from stream_api.storage.manifests import Manifest, read_manifest
from tests.http.serving import Serving, serve
from tests.upload.conftest import PART
from tests.upload.forms import END, HEADERS, field, file, raw_client

#: Of which zstd can make little: its first block is longer than what is looked at of other files.
SPARSE = b"a;b\n" + b"".join(b"%032x;%d\n" % (random.Random(n).getrandbits(128), n) for n in range(10_000))
LATE = b"a;b\n" + b"1;2\n" * (HEAD_BYTES // 4 - 1)


async def manifest_of(serving: Serving, body: bytes) -> Manifest:
    status, document = await serving.post(body, headers=HEADERS)
    assert status == 202, document
    manifest = await read_manifest(serving.store, UUID(document["uploadId"]))
    assert manifest is not None
    return manifest


@pytest.mark.parametrize(
    ("form", "dialect"),
    [
        (file(b"a;b\n1;2\n"), Dialect(delimiter=";")),
        (file(gzip.compress(b"a\tb\n" + b"1\t2\n" * 5)), Dialect(delimiter="\t", compression="gzip")),
        (file(zstd.compress(SPARSE)), Dialect(delimiter=";", compression="zstd")),
        (field("delimiter", b"pipe") + file(b"a;b\n"), Dialect(delimiter="|")),
        (file(b"a;b\n") + field("delimiter", b"pipe"), Dialect(delimiter="|")),
        (field("quote", b"none") + file(b"a;b\n") + field("encoding", b"latin1"),
         Dialect(delimiter=";", quote=None, encoding="iso-8859-1")),
        (field("escape", b"backslash") + field("comment", b"#") + file(b"#,\na;b\n"),
         Dialect(delimiter=";", escape="backslash", comment="#")),
        # Bytes beyond the beginning say nothing any more.
        (file(LATE + b"x;\xff\xe4" * (2 * PART // 4)), Dialect(delimiter=";")),
    ],
    ids=itertools.count(),
)  # fmt: skip
async def test_the_manifest_has_the_dialect(small: Settings, form: bytes, dialect: Dialect) -> None:
    async with serve(small) as serving:
        manifest = await manifest_of(serving, form + END)
        assert manifest.dialect == dialect
        assert manifest.callback_url is None


async def test_the_beginning_may_come_byte_by_byte(small: Settings) -> None:
    body = field("comment", b"#") + file(b"#,,\na|b\n") + END
    async with serve(small) as serving, raw_client(serving.port) as client:
        await client.start(len(body))
        for position in range(len(body)):
            await client.send(body[position : position + 1])
        status, _, document = await client.answer()
        assert status == 202
        manifest = await read_manifest(serving.store, UUID(document["uploadId"]))
        assert manifest is not None
        assert manifest.dialect == Dialect(delimiter="|", comment="#")


async def test_what_was_given_counts_for_a_repeated_request(small: Settings) -> None:
    keyed = HEADERS | {"Idempotency-Key": "one"}
    async with serve(small) as serving:
        body = field("delimiter", b"semicolon") + file(b"a;b\n") + END
        assert (await serving.post(body, headers=keyed))[0] == 202
        assert (await serving.post(body, headers=keyed))[0] == 202
        status, document = await serving.post(file(b"a;b\n") + END, headers=keyed)
        assert (status, document["code"], document["differs"]) == (422, "idempotency_key_reused", ["delimiter"])


async def test_manifests_of_old_mean_the_plain_dialect(small: Settings) -> None:
    async with serve(small) as serving:
        stored = msgspec.to_builtins(await manifest_of(serving, file(b"a;b\n") + END))
    assert stored.pop("dialect")["delimiter"] == ";"
    assert msgspec.convert(stored, Manifest).dialect == Dialect()
