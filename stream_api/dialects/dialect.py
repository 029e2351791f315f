"""The dialect of a file: everything that has to be known to read its bytes as records and fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import msgspec

from stream_api.errors import Failure, field_refused

Encoding = Literal["utf-8", "utf-16-le", "utf-16-be", "iso-8859-1", "windows-1252"]
Escape = Literal["double", "backslash"]
Compression = Literal["gzip", "zstd"]


class Dialect(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    r"""How a file is to be read. The defaults are what manifests without a dialect mean.

    Line ends are no part of it: LF, CRLF and CR end a line in every dialect, mixed ones too.

    :param delimiter: between fields, one ASCII character.
    :param quote: around fields, one ASCII character; `None` where no character has that meaning.
    :param escape: how a quote is written within a quoted field: doubled always; `backslash` means that there `\"` is
        a quote and `\\` a backslash as well.
    :param comment: lines that begin with it are no records; one ASCII character.
    :param encoding: of the text, as found by its byte order mark, or from its first bytes, or given.
    :param compression: of the whole file.
    :param sep_line: the first line, `sep=;`, is for spreadsheets and no header.
    """

    delimiter: str = ","
    quote: str | None = '"'
    escape: Escape = "double"
    comment: str | None = None
    encoding: Encoding = "utf-8"
    compression: Compression | None = None
    sep_line: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """What a client has said about the dialect; `None` is to be found from the file's beginning.

    :param no_quote: `quote=none` was given.
    :param encoding: `utf-16` is of the byte order that the mark at its beginning says.
    """

    delimiter: str | None = None
    quote: str | None = None
    no_quote: bool = False
    escape: Escape | None = None
    comment: str | None = None
    encoding: Encoding | Literal["utf-16"] | None = None

    def having(self, name: str, value: str) -> Given:
        """With the value of a form field.

        :param name: one of `FORM_FIELDS`.
        :raises Failure: `dialect_invalid`, naming what the field may be.
        """
        return replace(self, **FORM_FIELDS[name](name, value))

    def check(self) -> None:
        """Check the values against each other.

        :raises Failure: `dialect_invalid`.
        """
        quote = None if self.no_quote else self.quote
        named = {"delimiter": self.delimiter, "quote": quote, "comment": self.comment}
        named["escape"] = "\\" if self.escape == "backslash" else None
        check_distinct({name: value for name, value in named.items() if value is not None})


def check_distinct(named: Mapping[str, str]) -> None:
    """Check that no character has two meanings.

    :raises Failure: `dialect_invalid`.
    """
    seen: dict[str, str] = {}
    for name, value in named.items():
        if value in seen:
            detail = f"{seen[value]} and {name} are the same character, {value!r}: each must be one of its own."
            raise Failure("dialect_invalid", detail, field=name, value=value)
        seen[value] = name


#: Names for characters that are hard to type.
_NAMED: Final = {
    "comma": ",",
    "semicolon": ";",
    "tab": "\t",
    "\\t": "\t",
    "pipe": "|",
    "space": " ",
}
_NOT_A_MARK: Final = frozenset("\0\r\n\ufeff")
_ENCODINGS: Final[dict[str, Encoding | Literal["utf-16"]]] = {
    "utf-8": "utf-8",
    "utf-16": "utf-16",
    "utf-16-le": "utf-16-le",
    "utf-16-be": "utf-16-be",
    "iso-8859-1": "iso-8859-1",
    "windows-1252": "windows-1252",
}
#: Other spellings, as `_folded` leaves them.
_ENCODING_ALIASES: Final[dict[str, Encoding | Literal["utf-16"]]] = {
    "utf8": "utf-8",
    "utf16": "utf-16",
    "utf16le": "utf-16-le",
    "utf16be": "utf-16-be",
    "iso88591": "iso-8859-1",
    "latin1": "iso-8859-1",
    "windows1252": "windows-1252",
    "cp1252": "windows-1252",
}
_ESCAPES: Final[dict[str, Escape]] = {"double": "double", "backslash": "backslash", "\\": "backslash"}


def _delimiter(name: str, value: str) -> dict[str, Any]:
    return {"delimiter": _mark(name, value)}


def _quote(name: str, value: str) -> dict[str, Any]:
    if value == "none":
        return {"quote": None, "no_quote": True}
    return {"quote": _mark(name, value, ["none"]), "no_quote": False}


def _escape(name: str, value: str) -> dict[str, Any]:
    if value not in _ESCAPES:
        raise _refused(name, value, ["double", "backslash"])
    return {"escape": _ESCAPES[value]}


def _comment(name: str, value: str) -> dict[str, Any]:
    return {"comment": _mark(name, value)}


def _encoding(name: str, value: str) -> dict[str, Any]:
    found = _ENCODING_ALIASES.get(_folded(value))
    if found is None:
        raise _refused(name, value, list(_ENCODINGS))
    return {"encoding": found}


def _mark(name: str, value: str, more: list[str] | None = None) -> str:
    mark = _NAMED.get(value, value)
    if len(mark) != 1 or not mark.isascii() or mark in _NOT_A_MARK:
        named = [each for each in _NAMED if each.isalpha()]
        raise _refused(name, value, ["one ASCII character, no line end and no NUL", *named, *(more or [])])
    return mark


def _folded(value: str) -> str:
    return value.strip().lower().replace("-", "").replace("_", "")


def _refused(name: str, value: str, allowed: list[str]) -> Failure:
    return field_refused("dialect_invalid", name, value, allowed)


#: The form fields about the dialect, and what reads each.
FORM_FIELDS: Final[Mapping[str, Callable[[str, str], dict[str, Any]]]] = {
    "delimiter": _delimiter,
    "quote": _quote,
    "escape": _escape,
    "comment": _comment,
    "encoding": _encoding,
}
