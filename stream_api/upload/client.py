"""The client's side of an upload: its bytes, metered, and the watch over how fast they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from stream_api.config import Settings
from stream_api.errors import Failure

#: Bytes of lines (preamble, boundaries, headers) in front of one form field. aiohttp bounds a line, not their number
#: (aio-libs/aiohttp#13652).
MAX_LINE_BYTES: Final = 64 * 1024


class Body(Protocol):
    """What we use of `aiohttp.StreamReader`."""

    async def read(self, n: int = -1) -> bytes: ...  # noqa: D102

    async def readline(self) -> bytes: ...  # noqa: D102

    def at_eof(self) -> bool: ...  # noqa: D102


class ClientStream:
    """Stands between aiohttp's `MultipartReader` and the body, with the methods that the former uses.

    It counts bytes and the time for which we wait for the client (not the time for which the client waits for us),
    bounds the lines between fields, and takes back what the reader has read too far.
    """

    def __init__(self, body: Body, content_length: int | None) -> None:
        self._body: Final = body
        self._content_length: Final = content_length
        self._pushed_back = b""
        self._line_bytes = 0
        self._waiting_since: float | None = None
        self._waited_seconds = 0.0
        #: Bytes that came from the client.
        self.received_bytes = 0

    @property
    def waiting_seconds(self) -> float:
        """For how long we now wait for the client's next byte; 0 while we do not read."""
        return 0.0 if self._waiting_since is None else asyncio.get_running_loop().time() - self._waiting_since

    @property
    def waited_seconds(self) -> float:
        """How long we have waited for the client altogether."""
        return self._waited_seconds + self.waiting_seconds

    @property
    def most_bytes_left(self) -> int | None:
        """At most so many bytes are still to be read; `None` if the client did not say how long its body is."""
        if self._content_length is None:
            return None
        return max(0, self._content_length - self.received_bytes) + len(self._pushed_back)

    def begin_field(self) -> None:
        """A field begins: the bound on lines starts anew."""
        self._line_bytes = 0

    async def read(self, n: int = -1) -> bytes:
        """Some bytes, at most `n`; empty at the end."""
        if self._pushed_back:
            data, self._pushed_back = self._pushed_back[:n], self._pushed_back[n:]
            return data
        with self._waiting():
            data = await self._body.read(n)
        self.received_bytes += len(data)
        return data

    async def readline(self, *, max_line_length: int | None = None) -> bytes:
        """A line with its end.

        :param max_line_length: for this line; `None` for no bound but that on all lines.
        :raises Failure: `malformed_multipart` if the line or all lines in front of a field are too long.
        """
        end = self._pushed_back.find(b"\n") + 1
        if end:
            line, self._pushed_back = self._pushed_back[:end], self._pushed_back[end:]
        else:
            begin, self._pushed_back = self._pushed_back, b""
            with self._waiting():
                rest = await self._body.readline()
            self.received_bytes += len(rest)
            line = begin + rest
        self._line_bytes += len(line)
        if self._line_bytes > MAX_LINE_BYTES:
            detail = f"There are more than {MAX_LINE_BYTES} bytes in front of a form field."
            raise Failure("malformed_multipart", detail, limitBytes=MAX_LINE_BYTES)
        if max_line_length is not None and len(line) > max_line_length:
            detail = f"A header of a form field is longer than {max_line_length} bytes."
            raise Failure("malformed_multipart", detail, limitBytes=max_line_length)
        return line

    def at_eof(self) -> bool:
        """Nothing is left."""
        return not self._pushed_back and self._body.at_eof()

    def unread_data(self, data: bytes) -> None:
        """Take back what the reader has read too far."""
        self._pushed_back = data + self._pushed_back

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._waiting_since = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            self._waited_seconds += self.waiting_seconds
            self._waiting_since = None


async def watch_client(
    stream: ClientStream,
    settings: Settings,
    *,
    others_wait: Callable[[], bool],
) -> None:
    """Run beside the reading, and fail when the client is too slow. Ends by failing or by being cancelled.

    The rate is measured over windows of `slow_client_grace_seconds` in which we waited for the client, so that our
    own slowness is not held against it.

    :param others_wait: somebody waits for room that this upload holds.
    :raises Failure: `client_too_slow`.
    """
    least_bytes_per_second = settings.min_upload_bytes_per_second
    grace_seconds, idle_timeout_seconds = settings.slow_client_grace_seconds, settings.client_idle_timeout_seconds
    interval_seconds = min(1.0, grace_seconds / 8, idle_timeout_seconds / 8)
    window_waited, window_received = 0.0, 0
    while True:
        await asyncio.sleep(interval_seconds)
        if stream.waiting_seconds >= idle_timeout_seconds:
            raise Failure(
                "client_too_slow",
                f"Nothing was received for {idle_timeout_seconds:g} seconds.",
                limitSeconds=idle_timeout_seconds,
            )
        waited = stream.waited_seconds - window_waited
        if waited < grace_seconds:
            continue
        rate = (stream.received_bytes - window_received) / waited
        if rate < least_bytes_per_second and others_wait():
            raise Failure(
                "client_too_slow",
                f"The upload came at {rate:.0f} bytes per second while others waited;"
                f" at least {least_bytes_per_second} are wanted then.",
                limitBytesPerSecond=least_bytes_per_second,
            )
        window_waited, window_received = stream.waited_seconds, stream.received_bytes
