"""Whole loads of files in other dialects, against real servers."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import pytest
from backports import zstd

from stream_api.config import MIB
from stream_api.dialects.detection import HEAD_BYTES, detect
from stream_api.dialects.dialect import Compression, Dialect, Encoding, Given
from stream_api.ledger.rows import UploadRow
from tests.load.conftest import HEADER, Loading, event, events, open_loading
from tests.support.settings import change


async def loaded(loading: Loading, data: bytes, given: Given | None = None, **stored: Any) -> UploadRow:
    """Load a file in the dialect that is found for it."""
    dialect = detect(data[:HEAD_BYTES], whole=len(data) <= HEAD_BYTES, given=given or Given())
    return await loading.load(await loading.stored(data, dialect=dialect, **stored))


def semicolons(text: str) -> str:
    return text.replace(",", ";")


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8", "\ufeff"), ("utf-16-le", "\ufeff"), ("utf-16-be", "\ufeff"), ("cp1252", "")],
)
async def test_other_encodings(loading: Loading, encoding: str, mark: str) -> None:
    text = mark + HEADER.decode()
    text += "".join(event(number, source='"Zürich, ""5 €""\n"').decode() for number in range(500))
    row = await loaded(loading, text.encode(encoding), segment_bytes=20_000)
    assert (row.state, row.rows_inserted, row.rejected) == ("completed", 500, {})
    assert row.segments >= 3
    assert row.decoded_bytes == row.size_bytes == row.committed_bytes
    assert await loading.fetch("SELECT DISTINCT source FROM webhook_events") == [('Zürich, "5 €"\n',)]


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("sep=;\n{header}{row}", {}),
        ("\r\n\r\n{header}{row}", {}),
        ('# a comment, "\n{header}#\n{row}# c', {"comment": "#"}),
    ],
)  # fmt: skip
async def test_what_stands_around_the_rows(loading: Loading, text: str, given: dict[str, str]) -> None:
    said = Given()
    for name, value in given.items():
        said = said.having(name, value)
    row = event(1, payload="{}").decode()
    data = text.format(header=semicolons(HEADER.decode()), row=semicolons(row)).encode()
    assert (await loaded(loading, data, said)).rows_inserted == 1


async def test_backslashes(loading: Loading) -> None:
    data = HEADER + event(1, payload=r'"{\"a\": \"b\\\\c\"}"') + event(2, source=r'"a ""quoted"" \"one\", C:\x"')
    row = await loaded(loading, data)
    assert (row.rows_inserted, row.rejected) == (2, {})
    assert await loading.fetch("SELECT source, payload->>'a' FROM webhook_events ORDER BY id") == [
        ("shop", r"b\c"),
        (r'a "quoted" "one", C:\x', None),
    ]


async def test_a_stray_quote_costs_its_row(loading: Loading) -> None:
    rows = [event(number) for number in range(300)]
    rows[100] = event(100, source='"shop')
    rows[200] = event(200, status='"ok')
    row = await loaded(loading, HEADER + b"".join(rows), segment_bytes=5000)
    # The first is closed by a quote of its own line.
    rejected = {"wrong_field_count": 1, "unclosed_quote": 1}
    assert (row.state, row.rows_inserted, row.rejected) == ("completed", 298, rejected)
    missing = await loading.fetch(
        "SELECT n FROM generate_series(0, 299) AS n EXCEPT SELECT (payload->>'n')::int FROM webhook_events ORDER BY 1"
    )
    assert missing == [(100,), (200,)]


async def test_long_records_and_lines(loading: Loading) -> None:
    async with open_loading(change(loading.settings, max_record_bytes=1000, batch_bytes=2000)) as short:
        data = HEADER + event(1) + event(2, source='"' + "x" * 300 + "\n" + "y\n" * 400 + '"') + event(3)
        data += event(4, source="x" * 900_000) + event(5)
        row = await loaded(short, data, segment_bytes=3000)
        assert (row.state, row.rows_inserted) == ("completed", 3)
        # The lines of the record that is too long are records of their own.
        assert row.rejected == {"unclosed_quote": 1, "record_too_long": 1, "wrong_field_count": 401}
        assert row.rows_read == 3 + 403


def in_members(data: bytes, compression: str) -> bytes:
    half = len(data) // 2
    if compression == "gzip":
        return gzip.compress(data[:half]) + gzip.compress(data[half:])
    return zstd.compress(data[:half]) + zstd.compress(data[half:])


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_compressed_files(loading: Loading, compression: str) -> None:
    text = events(range(5000))
    row = await loaded(loading, in_members(text, compression), segment_bytes=64 * 1024)
    assert (row.state, row.rows_inserted, row.rejected, row.progress) == ("completed", 5000, {}, 1)
    assert (row.decoded_bytes, row.committed_bytes) == (len(text), len(text))
    assert row.size_bytes < len(text)
    assert await loading.count() == 5000
    shown = [record.progress for record in loading.statuses.records]
    assert shown[-1] == 1
    assert all(0 <= progress <= 1 for progress in shown)


async def test_a_compressed_file_in_utf16(loading: Loading) -> None:
    row = await loaded(loading, gzip.compress(semicolons(events(range(50)).decode()).encode("utf-16")))
    # Its payload is JSON with colons only, so nothing else has changed.
    assert (row.state, row.rows_inserted) == ("completed", 50)


async def test_a_compressed_load_goes_on_at_its_holes(loading: Loading) -> None:
    await loading.load(await loading.stored(HEADER + event(2500)))
    data = zstd.compress(events(range(5000)))
    manifest = await loading.stored(data, segment_bytes=32 * 1024, dialect=Dialect(compression="zstd"), max_rejects="0")
    row = await loading.load(manifest)
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", "too_many_rejects")
    assert row.decoded_bytes is None
    # Holes before and behind a segment, as lanes leave them behind; the duplicate goes as well.
    await loading.execute(
        "TRUNCATE webhook_events;"
        f"DELETE FROM stream_api.segments WHERE upload_id = '{manifest.upload_id}' AND number NOT IN (1, 3)"
    )
    kept = sum(segment.rows_inserted for segment in await loading.ledger.segments(manifest.upload_id))
    assert 0 < kept <= row.rows_inserted
    await loading.ledger.reopen(manifest.upload_id)
    row = await loading.load(manifest)
    assert (row.state, row.run, row.rows_inserted, row.decoded_bytes) == (
        "completed",
        2,
        5000,
        len(events(range(5000))),
    )
    assert await loading.count() == 5000 - kept
    segments = await loading.ledger.segments(manifest.upload_id)
    assert [segment.start for segment in segments] == [0, *(segment.end for segment in segments[:-1])]
    assert [segment.first_line for segment in segments] == [
        1 + events(range(5000))[: segment.start].count(b"\n") for segment in segments
    ]


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_a_file_without_its_end_fails(loading: Loading, compression: str) -> None:
    data = in_members(events(range(5000)), compression)
    manifest = await loading.stored(data[:-20], dialect=Dialect(compression=compression))  # type: ignore[arg-type]
    row = await loading.load(manifest)
    assert row.error is not None
    assert (row.state, row.error["code"]) == ("failed", "compression_truncated")
    assert manifest.key in await loading.keys()
    assert await loading.lanes() == []


async def test_a_bomb_fails(loading: Loading) -> None:
    compressor = zlib.compressobj(9, wbits=31)
    data = compressor.compress(HEADER + event(1))
    data += b"".join(compressor.compress(b"\n" * MIB) for _ in range(100)) + compressor.flush()
    assert len(data) < MIB
    row = await loaded(loading, data)
    assert row.error is not None
    assert (row.state, row.error["code"], row.error["limitRatio"]) == ("failed", "expansion_too_large", 200)


async def test_a_decoded_size_of_its_own_limit(loading: Loading) -> None:
    async with open_loading(change(loading.settings, max_decoded_bytes=1000)) as small:
        row = await loaded(small, gzip.compress(events(range(100))))
        assert row.error is not None
        assert (row.state, row.error["code"], row.error["limitBytes"]) == ("failed", "expansion_too_large", 1000)
        assert (await loaded(small, events(range(100)))).state == "completed"


@pytest.mark.parametrize(
    ("limit", "value", "code", "extra"),
    [
        ("max_header_bytes", 40, "header_too_long", {"limitBytes": 40}),
        ("max_columns", 6, "too_many_columns", {"limit": 6}),
    ],
)
async def test_limits_of_the_header(loading: Loading, limit: str, value: int, code: str, extra: dict[str, int]) -> None:
    async with open_loading(change(loading.settings, **{limit: value})) as small:
        row = await loaded(small, events(range(3)))
    assert row.error is not None
    assert (row.state, row.error["code"], row.rows_read) == ("failed", code, 0)
    assert extra.items() <= row.error.items()


async def test_a_long_value_costs_its_row(loading: Loading) -> None:
    async with open_loading(change(loading.settings, max_value_bytes=40)) as small:
        row = await loaded(small, HEADER + event(1) + event(2, status="x" * 41) + event(3, status="x" * 40))
    assert (row.state, row.rows_inserted, row.rejected) == ("completed", 2, {"value_too_long": 1})


async def test_a_limit_that_is_lowered_does_not_move_the_cuts_of_a_load(loading: Loading) -> None:
    """A record that is cut off at another place would be loaded twice, or not at all."""
    long = event(50, source='"' + "x\n" * 200 + '"')
    data = HEADER + b"".join(event(number) for number in range(50)) + long
    data += b"".join(event(number) for number in range(51, 100))
    await loading.load(await loading.stored(HEADER + event(90)))
    manifest = await loading.stored(data, segment_bytes=2000, max_rejects="0")
    row = await loading.load(manifest)
    assert (row.state, row.rows_inserted > 50) == ("failed", True)
    await loading.execute("DELETE FROM webhook_events WHERE id = '00000000-0000-4000-8000-00000000005a'")
    await loading.execute(
        f"DELETE FROM stream_api.segments WHERE upload_id = '{manifest.upload_id}' AND number <> 0;"
        "DELETE FROM webhook_events WHERE (payload->>'n')::int >= "
        f"(SELECT rows_inserted FROM stream_api.segments WHERE upload_id = '{manifest.upload_id}' AND number = 0)"
    )
    await loading.ledger.reopen(manifest.upload_id)
    async with open_loading(change(loading.settings, max_record_bytes=200)) as lower:
        row = await lower.load(manifest)
    assert (row.state, row.rows_inserted, row.rejected) == ("completed", 100, {})
    assert await loading.count() == 100


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "windows-1252"])
async def test_rows_that_only_postgres_refuses_in_every_dialect(
    loading: Loading, compression: Compression | None, encoding: Encoding
) -> None:
    """Their segments are read again, of a compressed file from its beginning; the records stay as they were."""
    await loading.load(await loading.stored(HEADER + b"".join(event(number) for number in range(0, 3000, 300))))
    text = events(range(3000)).decode().replace("shop", "caf\u00e9").encode(encoding)
    data = gzip.compress(text) if compression == "gzip" else zstd.compress(text) if compression else text
    dialect = Dialect(compression=compression, encoding=encoding)
    manifest = await loading.stored(data, segment_bytes=64 * 1024, dialect=dialect)
    row = await loading.load(manifest)
    assert (row.state, row.rows_read, row.rows_inserted) == ("completed", 3000, 2990)
    assert row.rejected == {"duplicate_key": 10}
    rejects = await loading.rejects(manifest.upload_id)
    assert [int(each["line"]) for each in rejects] == [number + 2 for number in range(0, 3000, 300)]
    refused = b"".join(
        event(number).decode().replace("shop", "caf\u00e9").encode(encoding) for number in range(0, 3000, 300)
    )
    assert await loading.original(manifest.upload_id) == HEADER.decode().encode(encoding) + refused
