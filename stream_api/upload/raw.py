"""A body that is the file, and nothing else: what the client says of it stands in the query."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Mapping
from typing import Final

from aiohttp import hdrs
from aiohttp.client_exceptions import ClientError
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.multipart import content_disposition_filename, parse_content_disposition
from aiohttp.web import RequestPayloadError

from stream_api.errors import Failure
from stream_api.upload.body import ANY_BYTES, File, content_type_of
from stream_api.upload.client import ClientStream
from stream_api.upload.form import clean

#: What a file may be called. A browser on Windows takes a CSV file for one of Excel's.
MEDIA_TYPES: Final = frozenset(
    {
        "text/csv",
        "text/tab-separated-values",
        "text/plain",
        "application/csv",
        "application/vnd.ms-excel",
        "application/gzip",
        "application/x-gzip",
        "application/zstd",
        ANY_BYTES,
    }
)


class RawReader:
    """Reads a body that is the file; it is that file itself."""

    #: The query has said all that there is to say.
    brings_fields = False

    def __init__(self, headers: Mapping[str, str], stream: ClientStream) -> None:
        self._stream: Final = stream
        self.name: Final = _file_name_of(headers.get(hdrs.CONTENT_DISPOSITION))
        self.content_type: Final = content_type_of(headers.get(hdrs.CONTENT_TYPE))

    async def files(self) -> AsyncGenerator[File, None]:
        """The file."""
        yield self

    async def read(self, max_bytes: int, /) -> bytes:
        """The next bytes; nothing at the end, which is where Content-Length or the last chunk has said it is.

        :raises Failure: `upload_incomplete`.
        """
        try:
            data = await self._stream.read(max_bytes)
        except (ConnectionError, RequestPayloadError, ClientError, EOFError, HttpProcessingError) as exc:
            raise Failure("upload_incomplete", "The connection broke before the file was complete.") from exc
        if not data and self._stream.most_bytes_left:
            raise Failure("upload_incomplete", "The body is shorter than its Content-Length says.")
        return data


def _file_name_of(disposition: str | None) -> str | None:
    """The file's name of a header `Content-Disposition`, if it has one (RFC 6266)."""
    with warnings.catch_warnings():
        # aiohttp warns of what a client has got wrong; the file has no name then.
        warnings.simplefilter("ignore")
        name = content_disposition_filename(parse_content_disposition(disposition)[1])
    return None if name is None else clean(name)
