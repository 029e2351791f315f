"""What a client says about its upload: fields of a form or parameters of the query, bounded, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from yarl import URL

from stream_api.config import RejectLimit
from stream_api.datasets.dataset import BUILT_IN, Datasets, find_dataset
from stream_api.dialects.dialect import FORM_FIELDS, Given
from stream_api.errors import Failure
from stream_api.options import FORM_FIELDS as OPTIONS
from stream_api.options import Options

FILE_FIELD: Final = "file"
MAX_CALLBACK_URL_CHARS: Final = 2048
_KNOWN: Final = ("dataset", "callbackUrl", "fileName", "maxRejects", *FORM_FIELDS, *OPTIONS)
_NOT_IN_URLS: Final = re.compile(r"[\x00-\x20\x7f]")


@dataclass(slots=True)
class Form:
    """The text fields of an upload, wherever they come from, filled while they come and checked at once.

    :param datasets: those that `dataset` may name.
    :param max_fields: bound for the number of fields, the file included.
    :param max_field_bytes: bound for the names and values of all text fields together.
    :param file_name: in place of the one that comes with the file.
    :param dialect: what the fields say about the dialect of the file.
    :param options: what they ask of the load.
    """

    datasets: Datasets
    max_fields: int
    max_field_bytes: int
    dataset: str = BUILT_IN
    file_name: str | None = None
    callback_url: str | None = None
    dialect: Given = field(default_factory=Given)
    max_rejects: str | None = None
    options: Options = field(default_factory=Options)
    #: Fields that the service does not know, and those about dialect and load as they came.
    fields: dict[str, str] = field(default_factory=dict)
    #: Of all fields that have begun.
    names: set[str] = field(default_factory=set)
    _text_bytes: int = 0

    def begin(self, name: str) -> None:
        """A field of this name begins, a text or the file.

        :raises Failure: `field_repeated`, `file_repeated`, `too_many_fields`.
        """
        if name in self.names:
            code = "file_repeated" if name == FILE_FIELD else "field_repeated"
            raise Failure(code, f"The field {name[:100]!r} was given more than once.")
        self.names.add(name)
        if len(self.names) > self.max_fields:
            detail = f"There are more than {self.max_fields} fields (STREAM_API_MAX_FIELDS)."
            raise Failure("too_many_fields", detail, limit=self.max_fields)

    def grow(self, size_bytes: int) -> None:
        """So many bytes of text have come.

        :raises Failure: `field_too_large`.
        """
        self._text_bytes += size_bytes
        if self._text_bytes > self.max_field_bytes:
            detail = f"The text fields are larger than {self.max_field_bytes} bytes (STREAM_API_MAX_FIELD_BYTES)."
            raise Failure("field_too_large", detail, limitBytes=self.max_field_bytes)

    def take(self, parameters: Iterable[tuple[str, str]]) -> None:
        """Take the parameters of a query: each is a field.

        :raises Failure: as `begin`, `grow` and `set`; `bad_request` for what is no text, or the file.
        """
        for name, value in parameters:
            try:
                size_bytes = len(name.encode()) + len(value.encode())
            except UnicodeEncodeError as exc:
                raise Failure("bad_request", f"The parameter {clean(name)[:100]!r} is not UTF-8.") from exc
            if name == FILE_FIELD:
                raise Failure("bad_request", "The file comes in the body of the request, not in its query.")
            self.begin(name)
            self.grow(size_bytes)
            self.set(name, value)

    def set(self, name: str, value: str) -> None:
        """Take a text field.

        :raises Failure: `callback_url_invalid`, `dataset_unknown`, `dialect_invalid`, `option_invalid` (also for a name
            that is nearly a known one) or `max_rejects_invalid`.
        """
        if name == "callbackUrl":
            self.callback_url = check_callback_url(value)
        elif name == "dataset":
            self.dataset = find_dataset(self.datasets, value).name
        elif name == "fileName":
            self.file_name = value
        elif name == "maxRejects":
            self.max_rejects = _check_reject_limit(value)
        else:
            if name in FORM_FIELDS:
                self.dialect = self.dialect.having(name, value)
                self.dialect.check()
            if name in OPTIONS:
                self.options = self.options.having(name, value)
            _check_spelling(name)
            self.fields[name] = value


def meaning(name: str, value: str | None) -> object:
    """What a field says, however it is written. For fields that were taken before."""
    if value is not None:
        for known in (FORM_FIELDS, OPTIONS):
            if name in known:
                return known[name](name, value)
    return value


def _check_spelling(name: str) -> None:
    """Refuse `dryrun` and `max_rejects`: taken for a name of the client's own, the file would be loaded without it."""
    meant = _SPELLINGS.get(_spelled(name))
    if meant is not None and meant != name:
        detail = f"There is no field {name[:100]!r}; did you mean {meant}?"
        raise Failure("option_invalid", detail, field=name[:100], nearest=meant)


def _spelled(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


_SPELLINGS: Final = {_spelled(name): name for name in _KNOWN}


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


def clean(text: str) -> str:
    """Text that can be encoded: aiohttp decodes headers with surrogates for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
