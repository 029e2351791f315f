"""A form with one file in it, read field by field."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Final, cast

from aiohttp import BodyPartReader, MultipartReader, StreamReader, hdrs
from aiohttp.client_exceptions import ClientError
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from stream_api.errors import Failure
from stream_api.upload.body import File, content_type_of
from stream_api.upload.client import ClientStream
from stream_api.upload.form import FILE_FIELD, Form, clean

MEDIA_TYPE: Final = "multipart/form-data"
_TEXT_CHUNK_BYTES: Final = 8 * 1024
#: Encodings that leave the bytes as they are (RFC 2045, section 6.2).
_PLAIN_ENCODINGS: Final = frozenset({"", "7bit", "8bit", "binary"})


class FormReader:
    """Reads a form. Text fields before and after the file go into `form`, which bounds them."""

    #: There may be some.
    brings_fields = True

    def __init__(self, headers: Mapping[str, str], stream: ClientStream, form: Form) -> None:
        self._stream: Final = stream
        self._form: Final = form
        with self._reading():
            self._reader: Final = MultipartReader(headers, cast("StreamReader", stream))

    async def files(self) -> AsyncGenerator[File, None]:
        """The file, once; it is to be read to its end.

        :raises Failure: whatever is wrong with the form.
        """
        came: set[str] = set()
        while (part := await self._next()) is not None:
            name = clean(part.name or "")
            if not name:
                raise Failure("malformed_multipart", "A form field has no name.")
            self._form.begin(name)
            came.add(name)
            if name == FILE_FIELD:
                yield _FormFile(part, self._reading)
            elif part.filename is not None:
                detail = (
                    f"A file came in the form field {name[:100]!r}: the one with the file must be named file "
                    '(curl: -F "file=@large.csv"), and there is one in a form.'
                )
                raise Failure("file_missing" if FILE_FIELD not in came else "file_repeated", detail)
            else:
                self._form.set(name, await self._text(part, name))
        if FILE_FIELD not in came:
            names = ", ".join(repr(name[:100]) for name in sorted(came)) or "none"
            detail = f'The form has no field named file (curl: -F "file=@large.csv"); the fields that came: {names}.'
            raise Failure("file_missing", detail)

    async def _next(self) -> BodyPartReader | None:
        self._stream.begin_field()
        with self._reading():
            part = await self._reader.next()
        if part is None:
            return None
        if not isinstance(part, BodyPartReader):
            raise Failure("malformed_multipart", "A form field may not be multipart itself.")
        encoding = part.headers.get(hdrs.CONTENT_TRANSFER_ENCODING, "").strip().lower()
        if encoding not in _PLAIN_ENCODINGS:
            detail = f"Content-Transfer-Encoding {encoding[:100]!r} is not supported: send the bytes as they are."
            raise Failure("field_encoding_unsupported", detail)
        return part

    async def _text(self, part: BodyPartReader, name: str) -> str:
        value = bytearray()
        self._form.grow(len(name.encode()))
        while not part.at_eof():
            with self._reading():
                chunk = await part.read_chunk(_TEXT_CHUNK_BYTES)
            value += chunk
            self._form.grow(len(chunk))
        try:
            return value.decode()
        except UnicodeDecodeError as exc:
            raise Failure("bad_request", f"The field {name[:100]!r} is not UTF-8.") from exc

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Translates what aiohttp raises while it reads a form.

        :raises Failure: `upload_incomplete` when the client has gone or the body ended early, `malformed_multipart`.
        """
        try:
            yield
        except (ConnectionError, RequestPayloadError, ClientError, EOFError) as exc:
            raise Failure("upload_incomplete", "The connection broke before the form was complete.") from exc
        except (ValueError, RuntimeError, AssertionError, LookupError, HttpProcessingError) as exc:
            # aiohttp's parser has no exception of its own; these are what it raises for malformed forms.
            if self._stream.at_eof():
                raise Failure("upload_incomplete", "The body ended before the form was complete.") from exc
            raise Failure("malformed_multipart", "The body cannot be read as multipart/form-data.") from exc


class _FormFile:
    """The file in a form.

    aiohttp keeps back the last chunk that it has read, for the boundary may lie in it and in the next.
    """

    def __init__(self, part: BodyPartReader, reading: Callable[[], AbstractContextManager[None]]) -> None:
        self._part: Final = part
        self._reading: Final = reading
        self.name: Final = None if part.filename is None else clean(part.filename)
        self.content_type: Final = content_type_of(part.headers.get(hdrs.CONTENT_TYPE))

    async def read(self, max_bytes: int, /) -> bytes:
        while not self._part.at_eof():
            with self._reading():
                chunk = await self._part.read_chunk(max_bytes)
            if chunk:
                return chunk
        return b""
