"""What an upload needs of the body of its request, whether that is a form or the file alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from stream_api.upload.client import Body
from stream_api.upload.form import clean

#: What is read from the client at once. Larger chunks brought no speed, and each upload holds about five of them.
CHUNK_BYTES: Final = 64 * 1024
_MAX_CONTENT_TYPE_CHARS: Final = 255
#: What a body without a word about it is (RFC 9110, section 8.3).
ANY_BYTES: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Incoming:
    """The request that brings an upload.

    :param parameters: of its query: each is a field, as those of a form.
    :param content_length: of the body, if the client said so.
    :param idempotency_key: names the upload: of all requests with it one is stored, and the others are compared to it.
    """

    headers: Mapping[str, str]
    parameters: Iterable[tuple[str, str]]
    body: Body
    content_length: int | None
    idempotency_key: str | None = None


class File(Protocol):
    """The file of an upload while it comes."""

    @property
    def name(self) -> str | None:
        """As the client gave it: to be shown, never to be used as a path."""

    @property
    def content_type(self) -> str:
        """As the client gave it."""

    async def read(self, max_bytes: int, /) -> bytes:
        """The next bytes; nothing at the end.

        :param max_bytes: a boundary of a form has to fit in, so 100 at least.
        :raises Failure: `upload_incomplete`, whenever the body ends before the file does; `malformed_multipart`.
        """


class BodyReader(Protocol):
    """Reads a body with one file in it."""

    @property
    def brings_fields(self) -> bool:
        """Text fields may come, before the file and after it."""

    def files(self) -> AsyncGenerator[File, None]:
        """The file, once; it is to be read to its end.

        :raises Failure: whatever is wrong with the body.
        """


def content_type_of(value: str | None) -> str:
    """The value of a header `Content-Type`, to be stored."""
    return clean(ANY_BYTES if value is None else value)[:_MAX_CONTENT_TYPE_CHARS]


def media_type_of(value: str | None) -> str:
    """What a header `Content-Type` names, without its parameters; `ANY_BYTES` where there is none."""
    return (value or "").partition(";")[0].strip().lower() or ANY_BYTES
