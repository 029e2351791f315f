r"""The grammar of CSV, exactly: where records end, and which fields a record has.

Every sequence of bytes has one reading. A field is one of

- quoted: it begins with a quote, ends at the next quote that is not doubled, and whatever follows that up to the
  next delimiter or line end belongs to it as it is (`"a"b` is `ab`);
- plain: anything else up to the next delimiter or line end; a quote in it is a character like any other.

A record ends at LF, CRLF or CR outside a quoted field, or at the end of the data. This is the reading of
`pyarrow.csv` (tests/load/test_grammar.py holds the two together), and that of Postgres but for a quote inside a plain
field, which Postgres takes for the start of a quoted part: one `5" pipe` would swallow the rest of the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from stream_api.load.model import Int64s

_LF, _CR = 10, 13


def count_lines(data: bytes) -> int:
    """Number of line ends in `data`: LF, CRLF and lone CR, quoted or not."""
    # By numpy: `bytes.count` looks at one byte at a time.
    feeds = int(np.count_nonzero(np.frombuffer(data, np.uint8) == _LF))
    return feeds + data.count(b"\r") - data.count(b"\r\n") if b"\r" in data else feeds


def line_end_positions(data: bytes) -> Int64s:
    """Offset of the last byte of each line end in `data`, ascending."""
    array = np.frombuffer(data, np.uint8)
    is_end = array == _LF
    if b"\r" in data:
        lone = array == _CR
        lone[:-1] &= array[1:] != _LF
        is_end |= lone
    return np.flatnonzero(is_end)


@dataclass(frozen=True)
class Grammar:
    """A dialect of CSV.

    :param delimiter: one byte.
    :param quote: one byte; doubled inside a quoted field it stands for itself.
    """

    delimiter: bytes = b","
    quote: bytes = b'"'
    _record: re.Pattern[bytes] = field(init=False, repr=False, compare=False)
    _last_record: re.Pattern[bytes] = field(init=False, repr=False, compare=False)
    _closed_record: re.Pattern[bytes] = field(init=False, repr=False, compare=False)
    _field: re.Pattern[bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        d, q = re.escape(self.delimiter), re.escape(self.quote)
        # Possessive quantifiers: no input can make these backtrack. See FACTS: 250 to 290 MB/s.
        tail = b"[^" + d + rb"\r\n]*+"
        inside = b"[^" + q + b"]*+(?:" + q + q + b"[^" + q + b"]*+)*+"
        plain = b"[^" + q + d + rb"\r\n]" + tail

        def record(close: bytes, end: bytes) -> re.Pattern[bytes]:
            one = b"(?:" + q + inside + close + tail + b"|" + plain + b"|)"
            return re.compile(one + b"(?:" + d + one + b")*+" + end)

        line_end = rb"(?:\r\n|\n|\r)"
        put = object.__setattr__  # the dataclass is frozen
        put(self, "_record", record(q, line_end))
        put(self, "_last_record", record(b"(?:" + q + rb"|\Z)", rb"(?:\r\n|\n|\r|\Z)"))
        put(self, "_closed_record", record(q, rb"(?:\r\n|\n|\r)?\Z"))
        put(
            self,
            "_field",
            re.compile(q + b"(" + inside + b")(?:" + q + b"(" + tail + rb")|\Z)|(" + plain + b")|()"),
        )

    def record_ends(self, data: bytes, *, final: bool) -> Int64s:
        """Offsets just past each record of `data`, which must begin where a record begins.

        :param final: nothing follows `data`: its rest is a record too, line end or not.
        """
        ends = self._fast_ends(data, final=final)
        return self._exact_ends(data, final=final) if ends is None else ends

    def _fast_ends(self, data: bytes, *, final: bool) -> Int64s | None:
        """As `record_ends` by the parity of quotes, or `None` where parity cannot be trusted.

        Parity is exact as long as each opening quote stands at the start of a field and each closing one before a
        delimiter, a line end or a quote (a doubled one): that is tested for all of them.
        """
        size = len(data)
        if b"\r" in data:
            # A CR as the last byte may be half of a CRLF; as it ends no record here, only its count is in the way.
            halves = not final and data.endswith(b"\r")
            if data.count(b"\r\n") + halves != data.count(b"\r"):
                return None
        array = np.frombuffer(data, np.uint8)
        newlines = np.flatnonzero(array == _LF)
        quote = self.quote[0]
        quotes = np.flatnonzero(array == quote)
        if quotes.size:
            opening, closing = quotes[::2], quotes[1::2]
            delimiter = self.delimiter[0]
            before = array[opening - 1]  # for an opening at 0 this looks at the last byte: see the next line
            fits = (before == delimiter) | (before == _LF) | (opening == 0)
            # `""`: this opening is the second half of a doubled quote.
            fits[1:] |= closing[: opening.size - 1] == opening[1:] - 1
            if not fits.all():
                return None
            after = array[np.minimum(closing + 1, size - 1)]
            fits = (after == delimiter) | (after == _LF) | (after == _CR) | (after == quote) | (closing == size - 1)
            if not fits.all():
                return None
            newlines = newlines[np.searchsorted(quotes, newlines) & 1 == 0]
        ends = newlines + 1
        if final and size and (not ends.size or ends[-1] != size):
            ends = np.append(ends, size)
        return ends

    def _exact_ends(self, data: bytes, *, final: bool) -> Int64s:
        """As `record_ends`, by the grammar itself."""
        match = (self._last_record if final else self._record).match
        size = len(data)
        limit = size - 1 if not final and data.endswith(b"\r") else size
        ends: list[int] = []
        position = 0
        while position < limit and (found := match(data, position, limit)):
            position = found.end()
            ends.append(position)
        return np.array(ends, np.int64)

    def is_closed(self, record: bytes) -> bool:
        """Whether the last quoted field of `record` (one record, line end or not) has its closing quote."""
        return self._closed_record.match(record) is not None

    def fields(self, record: bytes) -> list[bytes | None]:
        """The fields of one record, line end or not: `None` where nothing stands, `b''` where a quoted nothing does."""
        doubled, quote, delimiter = self.quote * 2, self.quote, self.delimiter
        found: list[bytes | None] = []
        position = 0
        while match := self._field.match(record, position):
            quoted, tail, plain, _ = match.groups()
            if quoted is not None:
                found.append(quoted.replace(doubled, quote) + (tail or b""))
            else:
                found.append(plain)
            position = match.end()
            if record[position : position + 1] != delimiter:
                return found
            position += 1
        return found  # pragma: no cover - the last alternative of a field matches anywhere
