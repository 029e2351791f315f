"""Nasty files give the rows and rejections that were written down for them, in whatever pieces they are read."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any
from unittest.mock import patch

import pytest

from stream_api.config import Settings
from stream_api.dialects.compression import Inflater
from stream_api.dialects.detection import HEAD_BYTES, detect
from stream_api.dialects.dialect import Dialect, Given
from stream_api.errors import Failure
from stream_api.load import source
from stream_api.load.cutter import Cutter
from stream_api.load.header import Limits, find_header
from stream_api.load.model import Batch
from stream_api.load.parser import Parser
from tests.load.conftest import Loading, open_loading
from tests.nasty.case import Nasty
from tests.nasty.files import compressed, dialects, encodings, fields, headers, lines, quotes, spectrum, values
from tests.nasty.memory import MemoryStore
from tests.support.settings import change

THEMES = {
    "spectrum": spectrum.FILES,
    "quotes": quotes.FILES,
    "lines": lines.FILES,
    "encodings": encodings.FILES,
    "dialects": dialects.FILES,
    "fields": fields.FILES,
    "compressed": compressed.FILES,
    "headers": headers.FILES,
    "values": values.FILES,
}
FILES = [file for files in THEMES.values() for file in files]
#: What becomes of a file when it is read: lines, offsets and values of its rows, and lines, offsets and codes of what
#: is none. Or the code of its failure.
Outcome = tuple[list[Any], list[Any]] | str

#: Segment and batch, in bytes.
SIZES = [(10**6, 10**6), (1, 1), (3, 2), (7, 7), (20, 4)]


def test_there_are_a_hundred_and_their_names_are_their_own() -> None:
    assert len(FILES) - len(spectrum.FILES) >= 100
    assert [name for name, count in Counter(file.name for file in FILES).items() if count > 1] == []


def dialect_of(file: Nasty) -> Dialect | str:
    """What the upload would be stored with, or the code that it would be refused with."""
    given = Given()
    for name, value in file.given.items():
        given = given.having(name, value)
    try:
        return detect(file.data[:HEAD_BYTES], whole=len(file.data) <= HEAD_BYTES, given=given)
    except Failure as failure:
        return failure.code


class Reading:
    """Reads one file again and again; what is cut in the same way is parsed once."""

    def __init__(self, file: Nasty, dialect: Dialect) -> None:
        self.file = file
        self.dialect = dialect
        limits = file.limits
        self.limits = Limits(
            record=limits.get("max_record_bytes", 10**6),
            header=limits.get("max_header_bytes", 10**6),
            columns=limits.get("max_columns", 1600),
        )
        self._parser: Parser | None = None
        self._parsed: dict[Any, tuple[list[Any], list[Any]]] = {}

    def read(self, pieces: Iterator[bytes], *, segment: int, batch: int) -> Outcome:
        """What becomes of the file if it arrives in these pieces."""
        cutter = Cutter(self.dialect, segment_bytes=segment, batch_bytes=batch, limits=self.limits)
        rows, rejects = list[Any](), list[Any]()
        try:
            for piece in self._decoded(pieces):
                if cutter.add(piece):
                    self._take(cutter.cut(), rows, rejects)
            self._take(cutter.cut(final=True), rows, rejects)
        except Failure as failure:
            return failure.code
        return rows, rejects

    def _decoded(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        if self.dialect.compression is None:
            yield from pieces
            return
        inflater = Inflater(self.dialect.compression)
        for piece in pieces:
            inflater.feed(piece)
            while made := inflater.read(len(piece)):
                yield made
        inflater.finish()

    def _take(self, batches: list[Batch], rows: list[Any], rejects: list[Any]) -> None:
        for batch in batches:
            key = (batch.start, batch.first_line, batch.data, batch.ends.tobytes(), tuple(batch.refused.items()))
            if key not in self._parsed:
                self._parsed[key] = self._parse(batch)
            more, others = self._parsed[key]
            rows += more
            rejects += others

    def _parse(self, batch: Batch) -> tuple[list[Any], list[Any]]:
        if self._parser is None:
            # The header is the first batch.
            found = find_header(batch.data, self.dialect, final=True, limits=self.limits)
            assert found is not None
            longest = self.file.limits.get("max_value_bytes", 10**6)
            self._parser = Parser(self.dialect, [str(number) for number in range(len(found[0]))], longest)
        parsed = self._parser.parse(batch)
        rejections = list(parsed.rejections(parsed.flaws))
        assert parsed.read == parsed.table.num_rows + len(rejections)
        values = [tuple(row.values()) for row in parsed.table.to_pylist()]
        rows = list(zip(parsed.lines.tolist(), parsed.offsets.tolist(), values, strict=True))
        return rows, [(each.line, each.offset, each.code) for each in rejections]


def in_pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def in_two(data: bytes, at: int) -> Iterator[bytes]:
    return iter((data[:at], data[at:]))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_cut_anywhere(file: Nasty) -> None:
    """At every byte, by chunks of every size, with segments and batches of some bytes."""
    dialect = dialect_of(file)
    if isinstance(dialect, str):
        assert dialect == file.fails
        return
    reading = Reading(file, dialect)
    whole = reading.read(iter([file.data]), segment=10**6, batch=10**6)
    if isinstance(whole, str):
        assert whole == file.fails
    elif file.is_plain and file.fails is None:
        assert ([row for _, _, row in whole[0]], whole[1]) == (file.rows, file.rejects)
    size = min(len(file.data), 120)
    for number, at in enumerate(range(1, size)):
        segment, batch = SIZES[number % len(SIZES)]
        assert reading.read(in_two(file.data, at), segment=10**6, batch=10**6) == whole, f"cut at {at}"
        assert reading.read(in_pieces(file.data, at), segment=segment, batch=batch) == whole, (at, segment, batch)
    for segment, batch in SIZES:
        assert reading.read(in_pieces(file.data, 1), segment=segment, batch=batch) == whole, (segment, batch)


@pytest.mark.parametrize("theme", THEMES)
async def test_loaded(settings: Settings, theme: str) -> None:
    """Into a table, byte for byte and in segments of a record: these rows and no others, and these rejections."""
    wrong: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        opened, store = dict[Any, Loading](), MemoryStore().as_store()
        for file in THEMES[theme]:
            values = {"lanes": file.lanes, **file.limits}
            key = tuple(values.items())
            if key not in opened:
                opened[key] = await stack.enter_async_context(open_loading(change(settings, **values), instead=store))
            with patch.object(source, "CHUNK_BYTES", 1 + len(file.data) // 200):
                found = await loaded(opened[key], file)
            if found != (file.fails, sorted(file.rows, key=repr), file.rejects):
                wrong[file.name] = found
    assert wrong == {}


async def loaded(loading: Loading, file: Nasty) -> Any:
    """Code of the failure, rows and rejections."""
    dialect = dialect_of(file)
    if isinstance(dialect, str):
        return dialect, [], []
    await loading.execute(
        f"DROP TABLE IF EXISTS webhook_events; {file.before}; CREATE TABLE webhook_events ({file.table})"
    )
    manifest = await loading.stored(file.data, segment_bytes=3, dialect=dialect)
    async with asyncio.timeout(20):
        row = await loading.load(manifest)
    rows, rejects = await stored_rows(loading), await loading.rejects(manifest.upload_id)
    assert row.rows_read == row.rows_processed + row.rows_failed, file.name
    assert (row.rows_processed, row.rows_failed) == (len(rows), len(rejects)), file.name
    return (
        None if row.error is None else row.error["code"],
        sorted(rows, key=repr),
        [(int(each["line"]), int(each["byteOffset"]), each["code"]) for each in rejects],
    )


async def stored_rows(loading: Loading) -> list[tuple[Any, ...]]:
    columns = await loading.value(
        "SELECT string_agg(quote_ident(attname) || '::text', ', ' ORDER BY attnum) FROM pg_attribute "
        "WHERE attrelid = 'webhook_events'::regclass AND attnum > 0"
    )
    return await loading.fetch(f"SELECT {columns} FROM webhook_events")
