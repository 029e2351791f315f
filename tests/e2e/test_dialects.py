"""Files in other dialects, encodings and compressions, as clients send them: by curl, and found without a word."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from stream_api.config import MIB, Settings
from tests.load.conftest import HEADER, Loading, event, events, open_loading
from tests.support.service import Service, client_of, running

pytestmark = pytest.mark.timeout(400)


@dataclass
class File:
    """A file and what becomes of it.

    :param form: fields that curl sends beside it.
    :param dialect: what the status shows, beyond the defaults.
    """

    data: bytes
    rows: int = 0
    form: dict[str, str] = field(default_factory=dict)
    dialect: dict[str, Any] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    source: str = "shop"


DEFAULTS = {
    "delimiter": ",", "quote": '"', "escape": "double", "comment": None, "encoding": "utf-8", "compression": None,
    "sepLine": False,
}  # fmt: skip
ROWS = b"".join(event(number) for number in range(300))


def semicolons(data: bytes) -> bytes:
    return data.replace(b",", b";")


def with_source(source: str, encoding: str) -> bytes:
    return semicolons(HEADER + event(1, source=source)).decode().encode(encoding)


def bomb() -> bytes:
    compressor = zlib.compressobj(9, wbits=31)
    data = compressor.compress(HEADER + event(1))
    return data + b"".join(compressor.compress(b"\n" * MIB) for _ in range(100)) + compressor.flush()


FILES = {
    "UTF-16 with semicolons": File(
        with_source("Łódź €", "utf-16"), 1, dialect={"delimiter": ";", "encoding": "utf-16-le"}, source="Łódź €"
    ),
    "UTF-16 of which the client says so": File(
        with_source("Łódź €", "utf-16-be"), 1, form={"encoding": "UTF-16BE"},
        dialect={"delimiter": ";", "encoding": "utf-16-be"}, source="Łódź €",
    ),
    "Windows-1252": File(
        with_source("Köln – 5 €", "cp1252"), 1, dialect={"delimiter": ";", "encoding": "windows-1252"},
        source="Köln – 5 €",
    ),
    "Latin-1": File(
        with_source("Köln", "latin-1"), 1, form={"encoding": "latin-1"},
        dialect={"delimiter": ";", "encoding": "iso-8859-1"}, source="Köln",
    ),
    "a line for spreadsheets": File(
        b"sep=;\r\n" + semicolons(HEADER + ROWS).replace(b"\n", b"\r\n"), 300,
        dialect={"delimiter": ";", "sepLine": True},
    ),
    "tabs and comments": File(
        b'# "\n' + (HEADER + event(1, payload="{}")).replace(b",", b"\t") + b"#\n", 1,
        form={"delimiter": "tab", "comment": "#", "quote": "none"},
        dialect={"delimiter": "\t", "comment": "#", "quote": None},
    ),
    "backslashes": File(
        HEADER + event(1, payload=r'"{\"n\": 1}"') + event(2), 2, dialect={"escape": "backslash"}
    ),
    "a stray quote in the middle": File(
        HEADER + ROWS + event(1000, status='"ok') + b"".join(event(number) for number in range(300, 400)), 400,
        rejected={"unclosed_quote": 1},
    ),
    "gzip of two members": File(
        gzip.compress(HEADER + ROWS) + gzip.compress(event(300)), 301, dialect={"compression": "gzip"}
    ),
    "zstd of two frames": File(
        zstd.compress(semicolons(HEADER + ROWS)) + zstd.compress(semicolons(event(300))), 301,
        dialect={"compression": "zstd", "delimiter": ";"},
    ),
    "gzip without its end": File(
        gzip.compress(events(range(5000)))[:-9], dialect={"compression": "gzip"}, error="compression_truncated"
    ),
    "a bomb": File(bomb(), dialect={"compression": "gzip"}, error="expansion_too_large"),
}  # fmt: skip


async def curl(service: Service, *arguments: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", *arguments, f"{service.url}/upload", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    answer: dict[str, Any] = json.loads(output)
    return answer


@pytest.fixture
async def look(settings: Settings) -> AsyncIterator[Loading]:
    """To look into the stores."""
    async with open_loading(settings) as opened:
        yield opened


async def test_every_kind_of_file(settings: Settings, look: Loading, tmp_path: Path) -> None:
    async with running("serve", settings, tmp_path) as service, client_of(service) as client:
        for name, file in FILES.items():
            await look.execute("TRUNCATE webhook_events")
            (tmp_path / "file").write_bytes(file.data)
            form = [text for key, value in file.form.items() for text in ("--form-string", f"{key}={value}")]
            answer = await curl(service, "-F", f"file=@{tmp_path / 'file'}", *form)
            status = await client.end(answer["uploadId"])
            assert status["dialect"] == DEFAULTS | file.dialect, name
            if file.error is not None:
                assert (status["status"], status["error"]["code"]) == ("failed", file.error), name
                continue
            assert status["status"] == "completed", (name, status)
            assert (status["rowsProcessed"], status["rejected"], status["progress"]) == (file.rows, file.rejected, 1), (
                name
            )
            assert await look.count() == file.rows, name
            assert await look.fetch("SELECT DISTINCT source FROM webhook_events") == [(file.source,)], name
        assert not service.errors()


async def test_what_may_not_be_given_is_refused_at_once(settings: Settings, look: Loading, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(HEADER)
    async with running("serve", settings, tmp_path, "--no-worker") as service:
        for field_name, value in {"delimiter": ";;", "quote": "'\"", "escape": "x", "encoding": "ebcdic"}.items():
            answer = await curl(service, "--form-string", f"{field_name}={value}", "-F", f"file=@{tmp_path / 'file'}")
            assert (answer["status"], answer["code"], answer["field"]) == (422, "dialect_invalid", field_name)
            assert answer["allowed"]
        # Only with the file it is known that the two clash, and then nothing is left behind.
        answer = await curl(service, "-F", f"file=@{tmp_path / 'file'}", "--form-string", 'delimiter="')
        assert (answer["status"], answer["code"]) == (422, "dialect_invalid")
        assert await look.keys() == []
