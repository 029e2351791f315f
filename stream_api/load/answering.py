"""The rejects of an upload as they are answered with: as a CSV, or as the part of the file that is to be mended."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from typing import Final
from uuid import UUID

from stream_api.errors import Failure
from stream_api.ledger.rejects import RejectsLedger, SegmentRejects
from stream_api.load.rejects import Rejection, Unpacker
from stream_api.storage.downloads import read_range
from stream_api.storage.objects import ObjectStore

#: Bytes read from S3 at a time. They can become many times as many: see `Unpacker`.
_CHUNK_BYTES: Final = 32 * 1024
#: What is sent at a time.
_SENT_BYTES: Final = 64 * 1024

COLUMNS: Final = ("line", "byteOffset", "column", "code", "reason", "record", "encoding")


class RejectsReader:
    """Reads the rejects that the committed rows of the ledger name.

    Memory, for each answer: a piece of an object, the 64 KiB that it becomes at a time, and one record in its two
    forms. While the client does not read, nothing is read here.

    :param store, ledger: stay the caller's.
    """

    def __init__(self, store: ObjectStore, ledger: RejectsLedger) -> None:
        self._store: Final = store
        self._ledger: Final = ledger

    async def as_csv(self, upload_id: UUID) -> AsyncGenerator[bytes, None]:
        """A CSV of `COLUMNS`: the record without its line end, as text where it is UTF-8 without NUL, else as base64.

        :raises Failure: of the store and the ledger.
        """
        yield _line(COLUMNS)
        async with aclosing(self._pieces(upload_id, _csv_line)) as pieces:
            async for piece in pieces:
                yield piece

    async def original(self, upload_id: UUID) -> AsyncGenerator[bytes, None]:
        """The file's header and the rejected records, byte for byte.

        :raises Failure: `header_not_loaded`, before anything is yielded; of the store and the ledger.
        """
        header = await self._ledger.header(upload_id)
        if header is None:
            detail = (
                "The segment that holds the file's header has not been loaded, so the records would come without it. "
                "Ask again later, or without format=original."
            )
            raise Failure("header_not_loaded", detail)
        yield header
        async with aclosing(self._pieces(upload_id, lambda rejection: rejection.record)) as pieces:
            async for piece in pieces:
                yield piece

    async def _pieces(self, upload_id: UUID, form: Callable[[Rejection], bytes]) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._ledger.named(upload_id)) as segments:
            async for segment in segments:
                unpacker = Unpacker()
                async with aclosing(self._packed(segment)) as chunks:
                    async for chunk in chunks:
                        for piece in _joined(map(form, unpacker.feed(chunk))):
                            yield piece
                unpacker.finish()

    async def _packed(self, segment: SegmentRejects) -> AsyncGenerator[bytes, None]:
        if segment.packed is not None:
            yield segment.packed
        if segment.key is not None:
            info = await self._store.stat(segment.key)
            chunks = read_range(
                self._store, segment.key, etag=info.etag, start=0, end=info.size_bytes, chunk_bytes=_CHUNK_BYTES
            )
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk


def _joined(pieces: Iterator[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) >= _SENT_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _csv_line(rejection: Rejection) -> bytes:
    record = rejection.record.removesuffix(b"\n").removesuffix(b"\r")
    text, encoding = _as_text(record), "utf8"
    if text is None:
        text, encoding = base64.b64encode(record).decode(), "base64"
    column = rejection.column or ""
    return _line((rejection.line, rejection.offset, column, rejection.code, rejection.reason, text, encoding))


def _as_text(record: bytes) -> str | None:
    if b"\0" in record:
        return None
    try:
        return record.decode()
    except UnicodeDecodeError:
        return None


def _line(values: tuple[object, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue().encode("utf-8", "replace")
