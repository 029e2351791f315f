"""The form of an upload: its fields in any order, bounded, and what they mean."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, cast

from aiohttp import BodyPartReader, MultipartReader, StreamReader, hdrs
from aiohttp.client_exceptions import ClientError
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError
from yarl import URL

from stream_api.config import RejectLimit
from stream_api.datasets.dataset import BUILT_IN, Datasets, find_dataset
from stream_api.dialects.dialect import FORM_FIELDS, Given
from stream_api.errors import Failure
from stream_api.options import FORM_FIELDS as OPTIONS
from stream_api.options import Options
from stream_api.upload.client import ClientStream

FILE_FIELD: Final = "file"
MAX_CALLBACK_URL_CHARS: Final = 2048
_MAX_CONTENT_TYPE_CHARS: Final = 255
_TEXT_CHUNK_BYTES: Final = 8 * 1024
#: Encodings that leave the bytes as they are (RFC 2045, section 6.2).
_PLAIN_ENCODINGS: Final = frozenset({"", "7bit", "8bit", "binary"})
_NOT_IN_URLS: Final = re.compile(r"[\x00-\x20\x7f]")


@dataclass(slots=True)
class Form:
    """The text fields of an upload, filled while they come and checked at once.

    :param datasets: those that `dataset` may name.
    :param dialect: what the fields say about the dialect of the file.
    :param options: what they ask of the load.
    """

    datasets: Datasets
    dataset: str = BUILT_IN
    callback_url: str | None = None
    dialect: Given = field(default_factory=Given)
    max_rejects: str | None = None
    options: Options = field(default_factory=Options)
    #: Fields that the service does not know, and those about dialect and load as they came.
    fields: dict[str, str] = field(default_factory=dict)

    def set(self, name: str, value: str) -> None:
        """Take a text field.

        :raises Failure: `callback_url_invalid`, `dataset_unknown`, `dialect_invalid`, `option_invalid` or
            `max_rejects_invalid`.
        """
        if name == "callbackUrl":
            self.callback_url = check_callback_url(value)
        elif name == "dataset":
            self.dataset = find_dataset(self.datasets, value).name
        elif name == "maxRejects":
            self.max_rejects = _check_reject_limit(value)
        else:
            if name in FORM_FIELDS:
                self.dialect = self.dialect.having(name, value)
                self.dialect.check()
            if name in OPTIONS:
                self.options = self.options.having(name, value)
            self.fields[name] = value


def _check_reject_limit(value: str) -> str:
    try:
        return str(RejectLimit.parse(value))
    except ValueError as exc:
        raise Failure("max_rejects_invalid", f"maxRejects {exc}.") from exc


def check_callback_url(value: str) -> str:
    """A URL as it is to be called.

    Whether webhooks may go to its address is judged when one is sent: what a name resolves to can change.

    :raises Failure: `callback_url_invalid` unless it is an absolute http or https URL with a host and no credentials.
    """
    if len(value) > MAX_CALLBACK_URL_CHARS:
        raise Failure("callback_url_invalid", f"callbackUrl is longer than {MAX_CALLBACK_URL_CHARS} characters.")
    if _NOT_IN_URLS.search(value):
        raise Failure("callback_url_invalid", "callbackUrl has white space or control characters.")
    try:
        url = URL(value)
        usable = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except ValueError as exc:
        raise Failure("callback_url_invalid", "callbackUrl cannot be parsed.") from exc
    if not usable:
        raise Failure("callback_url_invalid", "callbackUrl must be an absolute http or https URL with a host.")
    if url.user is not None or url.password is not None:
        # They would be stored, and shown to whoever sees the upload's row.
        detail = "callbackUrl must not contain a user or a password; webhooks can be signed instead."
        raise Failure("callback_url_invalid", detail)
    return str(url)


class FormReader:
    """Reads the form field by field.

    :param max_field_bytes: bound for the names and values of all text fields together.
    :param max_fields: bound for the number of fields, the file included.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        stream: ClientStream,
        form: Form,
        *,
        max_field_bytes: int,
        max_fields: int,
    ) -> None:
        if not headers.get(hdrs.CONTENT_TYPE, "").lower().startswith("multipart/form-data"):
            raise Failure("not_multipart", "Send the file as multipart/form-data, in a field named file.")
        self._stream: Final = stream
        self._form: Final = form
        self._max_field_bytes: Final = max_field_bytes
        self._max_fields: Final = max_fields
        self._text_bytes = 0
        with self.reading():
            self._reader: Final = MultipartReader(headers, cast("StreamReader", stream))

    async def files(self) -> AsyncGenerator[BodyPartReader, None]:
        """The file, once; text fields before and after it go into the form. The file is to be read to its end.

        :raises Failure: whatever is wrong with the form.
        """
        seen: set[str] = set()
        while (part := await self._next()) is not None:
            name = clean(part.name or "")
            if not name:
                raise Failure("malformed_multipart", "A form field has no name.")
            if name in seen:
                code = "file_repeated" if name == FILE_FIELD else "field_repeated"
                raise Failure(code, f"The field {name[:100]!r} was given more than once.")
            seen.add(name)
            if len(seen) > self._max_fields:
                detail = f"There are more than {self._max_fields} form fields (STREAM_API_MAX_FIELDS)."
                raise Failure("too_many_fields", detail, limit=self._max_fields)
            if name == FILE_FIELD:
                yield part
            elif part.filename is not None:
                detail = (
                    f"A file came in the form field {name[:100]!r}: the one with the file must be named file "
                    '(curl: -F "file=@large.csv"), and there is one in a form.'
                )
                raise Failure("file_missing" if FILE_FIELD not in seen else "file_repeated", detail)
            else:
                self._form.set(name, await self._text(part, name))
        if FILE_FIELD not in seen:
            came = ", ".join(repr(name[:100]) for name in sorted(seen)) or "none"
            detail = f'The form has no field named file (curl: -F "file=@large.csv"); the fields that came: {came}.'
            raise Failure("file_missing", detail)

    async def _next(self) -> BodyPartReader | None:
        self._stream.begin_field()
        with self.reading():
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
        self._text_bytes += len(name.encode())
        while not part.at_eof():
            with self.reading():
                chunk = await part.read_chunk(_TEXT_CHUNK_BYTES)
            value += chunk
            self._text_bytes += len(chunk)
            if self._text_bytes > self._max_field_bytes:
                detail = (
                    f"The text fields of the form are larger than {self._max_field_bytes} bytes"
                    " (STREAM_API_MAX_FIELD_BYTES)."
                )
                raise Failure("field_too_large", detail, limitBytes=self._max_field_bytes)
        try:
            return value.decode()
        except UnicodeDecodeError as exc:
            raise Failure("bad_request", f"The field {name[:100]!r} is not UTF-8.") from exc

    @contextmanager
    def reading(self) -> Iterator[None]:
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


def file_name_of(part: BodyPartReader) -> str | None:
    """The file's name as the client gave it: to be shown, never to be used as a path."""
    return None if part.filename is None else clean(part.filename)


def content_type_of(part: BodyPartReader) -> str:
    """The content type that the client gave the file."""
    return clean(part.headers.get(hdrs.CONTENT_TYPE, "application/octet-stream"))[:_MAX_CONTENT_TYPE_CHARS]


def clean(text: str) -> str:
    """Text that can be encoded: aiohttp decodes headers with surrogates for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
