"""The data of an upload as a load reads it: by ranges of the object itself, or decoded from its beginning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from stream_api.config import Settings
from stream_api.dialects.compression import Inflater
from stream_api.dialects.dialect import Dialect
from stream_api.errors import Failure
from stream_api.load.header import Limits, find_header
from stream_api.load.reader import CHUNK_BYTES, UNKNOWN_END, RunInThread
from stream_api.storage.downloads import read_range
from stream_api.storage.manifests import Manifest
from stream_api.storage.objects import ObjectStore


class Source:
    """What one load reads. Of a compressed file ranges can be opened in ascending order only.

    Memory: a chunk, and of a compressed file another one, decoded, and the decoder's window.

    :param dialect: of the plan.
    """

    def __init__(
        self,
        store: ObjectStore,
        manifest: Manifest,
        dialect: Dialect,
        settings: Settings,
        run_in_thread: RunInThread,
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._dialect = dialect
        self._settings = settings
        self._run_in_thread = run_in_thread
        self._decoding: _Decoding | None = None
        #: What was read of the data to find its header, and the rest of it.
        self._begun: tuple[list[bytes], AsyncGenerator[bytes, None]] | None = None
        #: Decoders take memory: there is one at a time beside that of the load.
        self._again = asyncio.Lock()

    @property
    def end(self) -> int:
        """Where the decoded data ends, if that is known before it is read."""
        return self._manifest.size_bytes if self._dialect.compression is None else UNKNOWN_END

    @property
    def decoded_bytes(self) -> int | None:
        """Size of a compressed file's data, once it has been read to its end."""
        return None if self._decoding is None else self._decoding.size_bytes

    @property
    def expected_bytes(self) -> int | None:
        """What a compressed file may expand to, judged by what was decoded so far."""
        return None if self._decoding is None else self._decoding.expected_bytes(self._manifest.size_bytes)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Keeps open, while the body runs, what is read in more than one go: the header's range, a compressed file."""
        async with AsyncExitStack() as stack:
            if self._dialect.compression is not None:
                inflater = Inflater(
                    self._dialect.compression,
                    max_decoded_bytes=self._settings.max_decoded_bytes,
                    max_expansion=self._settings.max_expansion,
                )
                stored = await stack.enter_async_context(aclosing(self._download(0, self._manifest.size_bytes)))
                self._decoding = _Decoding(stored, inflater, self._run_in_thread)
            try:
                yield
            finally:
                if self._begun is not None:
                    await self._begun[1].aclose()
                    self._begun = None

    @asynccontextmanager
    async def open_range(self, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """The decoded data from `start` up to `end`, or to its own end, in pieces.

        The whole of it goes on where the header was found: a request takes as long as some segments.

        :raises Failure: of the store; `compression_truncated`, `compression_invalid`, `compression_window`,
            `expansion_too_large`.
        """
        if self._begun is not None and (start, end) == (0, self.end):
            (head, pieces), self._begun = self._begun, None
        else:
            head, pieces = [], self._pieces(start, end)
        async with aclosing(pieces), aclosing(_joined(head, pieces)) as joined:
            yield joined

    @asynccontextmanager
    async def open_again(self, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """As `open_range`, at any place, and beside it.

        A compressed file is decoded once more from its beginning for that, and for one range at a time.
        """
        if self._decoding is None:
            async with self.open_range(start, end) as pieces:
                yield pieces
            return
        async with self._again:
            other = Source(self._store, self._manifest, self._dialect, self._settings, self._run_in_thread)
            async with other.opened(), other.open_range(start, end) as pieces:
                yield pieces

    async def read_header(self, limits: Limits, *, named: bool) -> list[str]:
        """The names in the header; none of a file without one. While it is `opened`, and before any range of it is.

        Memory: what was read, until the whole is asked for: the header and a chunk.

        :raises Failure: as `find_header` and `open_range`.
        """
        head, pieces = self._begun = [], self._pieces(0, self.end)
        text = b""
        async for piece in pieces:
            head.append(piece)
            text += piece
            found = find_header(text, self._dialect, final=False, limits=limits, named=named)
            if found is not None:
                return found[0]
        found = find_header(text, self._dialect, final=True, limits=limits, named=named)
        assert found is not None  # noqa: S101 (with `final` it is found or raises)
        return found[0]

    def _pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        return self._download(start, end) if self._decoding is None else self._decoding.pieces(start, end)

    def _download(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        manifest = self._manifest
        return read_range(self._store, manifest.key, etag=manifest.etag, start=start, end=end, chunk_bytes=CHUNK_BYTES)


async def _joined(head: list[bytes], rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    while head:
        yield head.pop(0)
    async for piece in rest:
        yield piece


class _Decoding:
    """A compressed file, decoded once from its beginning."""

    def __init__(self, stored: AsyncIterator[bytes], inflater: Inflater, run_in_thread: RunInThread) -> None:
        self._stored = stored
        self._inflater = inflater
        self._run_in_thread = run_in_thread
        #: Decoded, and beyond the range that was read last.
        self._rest = b""
        self._position = 0
        self.size_bytes: int | None = None

    def expected_bytes(self, stored_bytes: int) -> int | None:
        if self.size_bytes is not None:
            return self.size_bytes
        fed, decoded = self._inflater.fed_bytes, self._inflater.decoded_bytes
        return stored_bytes * decoded // fed if fed else None

    async def pieces(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        while self._position < end:
            piece = self._rest or await self._next()
            self._rest = b""
            if not piece:
                break
            begin = self._position
            self._position = min(begin + len(piece), end)
            self._rest = piece[end - begin :]
            if self._position > start:
                yield piece[max(0, start - begin) : end - begin]
        if self._position < end != UNKNOWN_END:
            detail = f"The decoded data ends at byte {self._position}, before what is loaded already."
            raise Failure("data_changed", detail)

    async def _next(self) -> bytes:
        """The next piece; nothing at the end."""
        while True:
            piece = await self._run_in_thread(self._inflater.read, CHUNK_BYTES)
            if piece:
                return piece
            stored = await anext(self._stored, None)
            if stored is None:
                self._inflater.finish()
                self.size_bytes = self._position
                return b""
            self._inflater.feed(stored)
