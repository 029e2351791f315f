"""Finds a file's dialect from its beginning. The same beginning always gives the same dialect."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

from stream_api.dialects.compression import Inflater, compression_of
from stream_api.dialects.dialect import Compression, Dialect, Encoding, Escape, Given, check_distinct

#: So much of a file is looked at, and of a compressed one so much once decoded.
HEAD_BYTES: Final = 32 * 1024
#: zstd gives nothing before it has a whole block, of 128 KiB at most (RFC 8878, section 3.1.1.2.4), and headers.
_ZSTD_HEAD_BYTES: Final = 129 * 1024
#: So much of a compressed beginning is decoded at a time, until so many members have begun: each costs its decoder, and
#: the event loop waits.
_FED_BYTES: Final = 1024
_MOST_MEMBERS: Final = 500
#: In so much of it UTF-16 without a mark shows, if so large a share of every other byte is zero.
_SAMPLE_BYTES: Final = 200
_MOSTLY: Final = 0.8
#: So large a share of the others may be zero: characters such as U+1F600 or U+0400 have one there.
_FEW: Final = 0.2
#: So many records are counted, blank lines and comments left out.
_MAX_RECORDS: Final = 100

_MARKS: Final[dict[bytes, Encoding]] = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_DELIMITERS: Final = (",", ";", "\t", "|")
_SEP_LINE: Final = re.compile(r'"?sep=([^\r\n])"?(?:\r\n|\n|\r|\Z)', re.IGNORECASE)
_LINE_END: Final = re.compile(r"\r\n|\n|\r")
_CODECS: Final[dict[Encoding, str]] = {"windows-1252": "cp1252", "iso-8859-1": "latin-1"}
#: What text in Windows-1252 has beside letters; other bytes speak against it.
_USUAL_1252: Final = frozenset("€‚„…‘’“”•–—™\xa0¡£§©ª«®°±²³´µ·º»¼½¾¿×÷")  # noqa: RUF001 (they are meant)
#: Bytes 0xFE and 0xFF: letters, but by themselves they are rather damage.
_RARE_1252: Final = frozenset("þÿ")
#: A valid sequence of several bytes in UTF-8: text in Windows-1252 has hardly ever one by chance.
_SEVERAL_BYTES: Final = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe1-\xef][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}")


@dataclass(frozen=True, slots=True)
class Beginning:
    """How a file begins.

    :param data: decompressed, `HEAD_BYTES` of it at most.
    :param whole: that is all of the file.
    """

    data: bytes
    whole: bool
    compression: Compression | None = None

    @classmethod
    def of(cls, head: bytes, *, whole: bool) -> Self:
        """Of a file that begins like this as it is stored.

        :param head: `head_bytes` of it, unless it is shorter.
        :raises Failure: of a compressed file that is damaged already here, as `Inflater.read`.
        """
        compression = compression_of(head)
        if compression is None:
            return cls(head[:HEAD_BYTES], whole and len(head) <= HEAD_BYTES)
        return cls(_decoded(head, compression), whole=False, compression=compression)


def head_bytes(begin: bytes) -> int:
    """How much of a file has to be looked at.

    :param begin: its first bytes, four of them or more.
    """
    return _ZSTD_HEAD_BYTES if compression_of(begin) == "zstd" else HEAD_BYTES


def detect(head: bytes, *, whole: bool, given: Given) -> Dialect:
    """As `detect_in`, for a file that begins like this as it is stored.

    :raises Failure: as `Beginning.of` and `detect_in`.
    """
    return detect_in(Beginning.of(head, whole=whole), given)


def detect_in(beginning: Beginning, given: Given) -> Dialect:
    """The dialect of a file with this beginning; what is given stands.

    :raises Failure: `dialect_invalid` where what is given leaves no characters for what is not.
    """
    head, whole, compression = beginning.data, beginning.whole, beginning.compression
    encoding, mark = _encoding(head, whole=whole, given=given)
    text = head[mark:].decode(_CODECS.get(encoding, encoding), "replace")
    sep = _SEP_LINE.match(text)
    text = text[sep.end() :] if sep else text
    quote = _quote(text, given)
    delimiter, escape = _delimiter_and_escape(
        text, quote, given, said=sep[1] if sep and sep[1].isascii() else None, whole=whole
    )
    named = {"delimiter": delimiter, "quote": quote, "comment": given.comment}
    named["escape"] = "\\" if escape == "backslash" else None
    check_distinct({name: value for name, value in named.items() if value is not None})
    return Dialect(
        delimiter=delimiter,
        quote=quote,
        escape=escape,
        comment=given.comment,
        encoding=encoding,
        compression=compression,
        sep_line=sep is not None,
    )


def _decoded(head: bytes, compression: Compression) -> bytes:
    """The beginning of the decoded data."""
    inflater = Inflater(compression)
    decoded = b""
    for start in range(0, len(head), _FED_BYTES):
        inflater.feed(head[start : start + _FED_BYTES])
        while len(decoded) < HEAD_BYTES and (piece := inflater.read(HEAD_BYTES - len(decoded))):
            decoded += piece
        if len(decoded) == HEAD_BYTES or inflater.members > _MOST_MEMBERS:
            break
    return decoded


def _encoding(head: bytes, *, whole: bool, given: Given) -> tuple[Encoding, int]:
    """The encoding, and the size of the byte order mark."""
    marked = next(((mark, encoding) for mark, encoding in _MARKS.items() if head.startswith(mark)), None)
    if given.encoding == "utf-16":
        mark, encoding = marked or (b"", _unmarked_utf16(head) or "utf-16-le")
        return (encoding, len(mark)) if encoding != "utf-8" else ("utf-16-le", 0)
    if given.encoding is not None:
        return given.encoding, len(marked[0]) if marked is not None and marked[1] == given.encoding else 0
    if marked is not None:
        return marked[1], len(marked[0])
    unmarked = _unmarked_utf16(head)
    if unmarked is not None:
        return unmarked, 0
    return ("windows-1252" if _is_windows_1252(head, whole=whole) else "utf-8"), 0


def _unmarked_utf16(head: bytes) -> Encoding | None:
    """UTF-16 without a mark, by the zeros of its ASCII characters: at first, where the header is, most are such."""
    sample = head[:_SAMPLE_BYTES]
    evens, odds = sample[::2], sample[1::2]
    orders: list[tuple[Encoding, bytes, bytes]] = [("utf-16-le", odds, evens), ("utf-16-be", evens, odds)]
    for encoding, zeros, others in orders:
        if zeros and zeros.count(0) >= _MOSTLY * len(zeros) and others.count(0) <= _FEW * len(others):
            return encoding
    return None


def _is_windows_1252(head: bytes, *, whole: bool) -> bool:
    """Whether this is text in Windows-1252, and not UTF-8 with damaged bytes: those cost their rows only."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=whole)
    except UnicodeDecodeError:
        pass
    else:
        return False
    if b"\0" in head or _SEVERAL_BYTES.search(head):
        return False
    others = set(bytes(byte for byte in set(head) if byte >= 0x80).decode("cp1252", "replace"))  # noqa: PLR2004
    usual = all(character.isalpha() or character in _USUAL_1252 for character in others)
    return usual and not others <= _RARE_1252


def _quote(text: str, given: Given) -> str | None:
    """The quote: `'` where every name in the header stands in such, `"` otherwise."""
    if given.quote is not None or given.no_quote:
        return given.quote
    taken = {given.delimiter, given.comment}
    for delimiter in [given.delimiter] if given.delimiter else _DELIMITERS:
        header = next(_records(text, _Marks(delimiter, "'", "double", given.comment)), None)
        if header is not None and header.all_quoted and header.tidy and "'" not in taken:
            return "'"
    return '"'


def _delimiter_and_escape(
    text: str, quote: str | None, given: Given, *, said: str | None, whole: bool
) -> tuple[str, Escape]:
    """Delimiter and escape under which the header has several fields and most records have as many.

    :param said: by a line `sep=`.
    """
    taken = {quote, given.comment}
    fixed = given.delimiter or said
    delimiters = [fixed] if fixed is not None else [each for each in _DELIMITERS if each not in taken]
    escapes: list[Escape] = ["double"]
    if given.escape is not None:
        escapes = [given.escape]
    elif quote is not None and "\\" + quote in text and "\\" not in taken | {fixed}:
        escapes.append("backslash")
    best, best_rank = (delimiters[0], escapes[0]), (0.0, False, 0)
    for delimiter, escape in itertools.product(delimiters, escapes):
        marks = _Marks(delimiter, quote, escape, given.comment)
        found = list(itertools.islice(_records(text, marks), _MAX_RECORDS))
        if found and not whole and len(found) < _MAX_RECORDS:
            del found[max(1, len(found) - 1) :]  # the last one may be cut off
        if not found or (found[0].fields == 1 and fixed is None):
            continue
        as_many = sum(record.fields == found[0].fields for record in found) / len(found)
        rank = (round(as_many, 1), all(record.tidy for record in found), found[0].fields)
        if rank > best_rank:
            best, best_rank = (delimiter, escape), rank
    return best


@dataclass(frozen=True, slots=True)
class _Marks:
    delimiter: str
    quote: str | None
    escape: Escape
    comment: str | None


@dataclass(slots=True)
class _Record:
    """What one record looks like.

    :param tidy: after the closing quote of each field comes a delimiter or a line end.
    """

    fields: int = 0
    tidy: bool = True
    all_quoted: bool = True


def _records(text: str, marks: _Marks) -> Iterator[_Record]:
    """The records of a text; one that is cut off at its end is not tidy."""
    field, comment = _field(marks), marks.comment
    position, size = 0, len(text)
    while position < size:
        if comment is not None and text.startswith(comment, position):
            position = _end_of_line(text, position)
            continue
        if text[position] in "\r\n":
            position += 1
            continue
        record = _Record()
        while True:
            found = field.match(text, position)
            assert found is not None  # noqa: S101 (its last alternative matches anywhere)
            closing, tail = found["closing"], found["tail"]
            record.fields += 1
            record.all_quoted = record.all_quoted and closing is not None
            record.tidy = record.tidy and closing != "" and not tail
            position = found.end()
            if not text.startswith(marks.delimiter, position):
                break
            position += 1
        yield record


def _field(marks: _Marks) -> re.Pattern[str]:
    """A field up to its delimiter: a quoted one with its closing quote (nothing at the end of the text) and tail."""
    delimiter, quote = re.escape(marks.delimiter), re.escape(marks.quote or "")
    tail = rf"[^{delimiter}\r\n]*+"
    if not quote:
        return re.compile(rf"(?P<closing>(?!))?(?P<tail>(?!))?{tail}")
    escapes, other = quote * 2, f"[^{quote}]*+"
    if marks.escape == "backslash":
        escapes, other = rf"{escapes}|\\[{quote}\\]|\\", rf"[^{quote}\\]*+"
    inside = f"{other}(?:(?:{escapes}){other})*+"
    return re.compile(rf"{quote}{inside}(?P<closing>{quote}|\Z)(?P<tail>{tail})|(?!{quote}){tail}")


def _end_of_line(text: str, position: int) -> int:
    found = _LINE_END.search(text, position)
    return len(text) if found is None else found.end()
