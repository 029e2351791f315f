r"""The grammar of CSV, exactly: where records end, and which fields a record has.

Every sequence of bytes has one reading in each dialect. A field is one of

- quoted: it begins with a quote, ends at the next quote that is not escaped, and whatever follows that up to the
  next delimiter or line end belongs to it as it is (`"a"b` is `ab`);
- plain: anything else up to the next delimiter or line end; a quote in it is a character like any other.

Within a quoted field `""` stands for a quote. With escape by backslash `\"` does too and `\\` stands for a backslash; a
backslash before anything else, or in a plain field, is a backslash: what `COPY … (FORMAT csv, ESCAPE '\')` and MySQL's
`SELECT … INTO OUTFILE … ENCLOSED BY '"'` write. Without a quote every field is plain.

A line ends at LF, CRLF or CR; so does a record, outside a quoted field, or at the end of the data. A line that begins
with the comment character where a record would begin is a comment. This is the reading of `pyarrow.csv`
(tests/load/test_grammar.py holds the two together), and that of Postgres but for a quote inside a plain field, which
Postgres takes for the start of a quoted part: one `5" pipe` would swallow the rest of the file.

A quote at the start of a field can be a stray one, too, and then the lines after it are other records. So a record
costs its first line, and the next line begins one anew, when a quoted field in it goes over a line end and

- is not closed before the end of the file, or
- is closed by a quote with something other than a delimiter or a line end after it (most likely the opening quote of a
  later record), or
- the record is longer than the limit.

A single line that is longer than the limit is one record, which is refused as well. What is refused depends on the
bytes, the dialect and the limit alone, never on how much of the file is at hand (`Grammar.read` leaves undecided
what it cannot know yet).
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from stream_api.load.bits import bits, of_next, of_previous, parity, places, set_bit
from stream_api.load.model import CONTINUED, RECORD_TOO_LONG, UNCLOSED_QUOTE, Int64s

if TYPE_CHECKING:
    from stream_api.dialects.dialect import Dialect

_LF, _CR = 10, 13
_LINE_END = rb"(?:\r\n|\n|\r)"
_FIRST_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_BACKSLASH: Final = b"\\"
_NONE: Final[Int64s] = np.empty(0, np.int64)


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


@dataclass(slots=True)
class Reading:
    """What is known of some data that begins where a record begins.

    :param ends: offsets just past each record.
    :param inner: offsets just past each line end within a record.
    :param refused: records that are none, by their number: `unclosed_quote` and `record_too_long`, and `CONTINUED` for
        what follows the beginning of a line that is too long.
    :param in_line: the data ends within a line that is too long: what comes next is the rest of it.
    """

    ends: Int64s
    inner: Int64s = field(default_factory=lambda: _NONE)
    refused: dict[int, str] = field(default_factory=dict)
    in_line: bool = False


@dataclass(frozen=True)
class Grammar:
    """What a dialect makes of bytes in which each of its characters is one byte.

    :param delimiter: one byte.
    :param quote: one byte, or none at all.
    :param backslash: escapes within quoted fields.
    :param comment: one byte, or none at all.
    """

    delimiter: bytes = b","
    quote: bytes = b'"'
    backslash: bool = False
    comment: bytes = b""
    _closed: re.Pattern[bytes] = field(init=False, repr=False, compare=False)
    _inside: re.Pattern[bytes] = field(init=False, repr=False, compare=False)
    _rest: re.Pattern[bytes] = field(init=False, repr=False, compare=False)
    _field: re.Pattern[bytes] = field(init=False, repr=False, compare=False)
    _escaped: re.Pattern[bytes] = field(init=False, repr=False, compare=False)
    _next_escaped: re.Pattern[bytes] = field(init=False, repr=False, compare=False)

    @classmethod
    def of(cls, dialect: Dialect) -> Grammar:
        """The grammar of a dialect."""
        quote, comment = dialect.quote or "", dialect.comment or ""
        return cls(dialect.delimiter.encode(), quote.encode(), dialect.escape == "backslash", comment.encode())

    def __post_init__(self) -> None:
        d, q = re.escape(self.delimiter), re.escape(self.quote)
        # Possessive quantifiers: no input can make these backtrack. See FACTS: 250 to 290 MB/s.
        tail = b"[^" + d + rb"\r\n]*+"
        if q:
            escapes = q + q + (rb"|\\[" + q + rb"\\]|\\" if self.backslash else b"")
            other = b"[^" + q + (rb"\\" if self.backslash else b"") + b"]*+"
            inside = other + b"(?:(?:" + escapes + b")" + other + b")*+"
            quoted, plain = q + inside + q + tail + b"|", b"[^" + q + d + rb"\r\n]" + tail
            whole = q + b"(" + inside + b")(?:" + q + b"(" + tail + rb")|\Z)|(" + plain + b")|()"
        else:
            inside, escapes, quoted, plain = b"(?!)", b"(?!)", b"", b"[^" + d + rb"\r\n]" + tail
            whole = b"((?!))()|(" + plain + b")|()"
        one = b"(?:" + quoted + plain + b"|)"
        rest = b"(?:" + d + one + b")*+" + _LINE_END + rb"?+\Z"
        put = object.__setattr__  # the dataclass is frozen
        put(self, "_closed", re.compile(one + rest))
        put(self, "_inside", re.compile(inside))
        put(self, "_rest", re.compile(rest))
        put(self, "_field", re.compile(whole))
        # Up to the next field with a backslash in it, and that field.
        simple = q + b"[^" + q + rb"\\]*+(?:" + q + q + b"[^" + q + rb"\\]*+)*+" + q + tail + b"|" if q else b""
        skipped = b"(?:(?:" + simple + plain + b"|)(?:" + d + b"|" + _LINE_END + b"))*+"
        put(self, "_next_escaped", re.compile(skipped + q + b"(" + inside + b")" + q))
        put(self, "_escaped", re.compile((rb"\\([" + q + rb"\\])|" if self.backslash and q else b"((?!))|") + q + q))

    def read(self, data: bytes, *, final: bool, limit: int, in_line: bool = False) -> Reading:
        """The records of `data`, which must begin where a record begins.

        Afterwards no more than `limit` bytes are left undecided; with `final` none.

        :param final: nothing follows `data`: its rest is a record too, line end or not.
        :param limit: bytes that a record may have, at least 2.
        :param in_line: `data` begins with the rest of a line that is too long.
        """
        if in_line:
            return self._read_in_line(data, final=final, limit=limit)
        reading = self._read_fast(data, final=final)
        if reading is not None and not _is_long(reading.ends, len(data), limit):
            return reading
        return _Exactly(self, data, final=final, limit=limit).reading()

    def _read_in_line(self, data: bytes, *, final: bool, limit: int) -> Reading:
        found = _FIRST_LINE_END.search(data)
        end = len(data) if found is None else found.end()
        if found is None or (end == len(data) and found[0] == b"\r" and not final):
            end -= found is not None  # half of a CRLF has to wait for the other half
            ends = np.array([end] if end else [], np.int64)
            return Reading(ends, refused={0: CONTINUED} if end else {}, in_line=not final)
        rest = self.read(data[end:], final=final, limit=limit)
        refused = {number + 1: code for number, code in rest.refused.items()}
        return Reading(np.append(end, rest.ends + end), rest.inner + end, {0: CONTINUED} | refused, rest.in_line)

    def record_ends(self, data: bytes, *, final: bool) -> Int64s:
        """As the ends of `read`, without a limit."""
        return self.read(data, final=final, limit=len(data) + 2).ends

    def _read_fast(self, data: bytes, *, final: bool) -> Reading | None:
        """As `read` without a limit, by the parity of quotes, or `None` where parity cannot be trusted.

        Parity is exact as long as each opening quote stands at the start of a field and each closing one before a
        delimiter, a line end or a quote (a doubled one): that is tested for all of them.
        """
        if self.backslash and _BACKSLASH in data:
            return None
        size, seen, inner = len(data), np.frombuffer(data, np.uint8), _NONE
        feeds = bits(seen == _LF)
        line_ends = feeds.copy()
        # So is what follows the data: that may be the other half of a CRLF.
        set_bit(line_ends, size)
        if b"\r" in data:
            returns = bits(seen == _CR)
            if (returns & ~of_next(line_ends)).any():
                return None
            line_ends |= returns
        if self.comment and self.comment in data:
            comments = bits(seen == self.comment[0])
            if data.startswith(self.comment) or (comments & of_previous(line_ends)).any():
                return None
        if self.quote and self.quote in data:
            quotes = bits(seen == self.quote[0])
            within = parity(quotes)
            if final and within[-1] >> 63:
                return None
            opening = quotes & within
            # Of `""` within a field the first one closes it and the second one opens it again.
            beside = line_ends | bits(seen == self.delimiter[0]) | quotes
            if ((of_next(opening) | of_previous(quotes ^ opening)) & ~beside).any():
                return None
            inner = places(feeds & within) + 1
            feeds &= ~within
        ends = places(feeds) + 1
        if final and size and (not ends.size or ends[-1] != size):
            ends = np.append(ends, size)
        return Reading(ends, inner[: np.searchsorted(inner, ends[-1])] if ends.size else _NONE)

    def is_comment(self, record: bytes) -> bool:
        """Whether `record` is a comment."""
        return bool(self.comment) and record.startswith(self.comment)

    def is_closed(self, line: bytes, start: int = 0, end: int | None = None) -> bool:
        """Whether all that begins in `line`, where a record begins, ends in it: if it is one line, it is a record."""
        return self._closed.match(line, start, len(line) if end is None else end) is not None

    def after(self, data: bytes, start: int, end: int) -> Literal["open", "closed", "torn"]:
        """The state after a line that begins within a quoted field: within one, at the end of a record, or torn."""
        # The pattern matches anywhere.
        position = self._inside.match(data, start, end).end()  # type: ignore[union-attr]
        if position == end:
            return "open"
        position += 1
        if position < end and data[position] not in (_LF, _CR, self.delimiter[0]):
            return "torn"
        return "closed" if self._rest.match(data, position, end) is not None else "open"

    def fields(self, record: bytes) -> list[bytes | None]:
        """The fields of one record, line end or not: `None` where nothing stands, `b''` where a quoted nothing does."""
        delimiter = self.delimiter
        found: list[bytes | None] = []
        position = 0
        while match := self._field.match(record, position):
            quoted, tail, plain, _ = match.groups()
            if quoted is not None:
                found.append(self._unescaped(quoted) + (tail or b""))
            else:
                found.append(plain)
            position = match.end()
            if record[position : position + 1] != delimiter:
                return found
            position += 1
        return found  # pragma: no cover - the last alternative of a field matches anywhere

    def doubled(self, records: bytes) -> bytes:
        """The same records with quotes escaped by doubling alone."""
        if not self.backslash or _BACKSLASH not in records:
            return records
        made: list[bytes | memoryview] = []
        position, view = 0, memoryview(records)
        while found := self._next_escaped.match(records, position):
            text = found[1]
            if _BACKSLASH * 2 not in text:
                text = text.replace(_BACKSLASH + self.quote, self.quote * 2)
            else:
                text = self._unescaped(text).replace(self.quote, self.quote * 2)
            made += (view[position : found.start(1)], text, self.quote)
            position = found.end()
        return b"".join([*made, view[position:]])

    def _unescaped(self, text: bytes) -> bytes:
        if self.backslash and _BACKSLASH in text:
            return self._escaped.sub(lambda found: found[1] or self.quote, text)
        return text.replace(self.quote * 2, self.quote)


def _is_long(ends: Int64s, size: int, limit: int) -> bool:
    """Whether a record, or what is left undecided, is longer than `limit`."""
    if size <= limit:
        return False
    last = int(ends[-1]) if ends.size else 0
    return size - last > limit or int(ends[0]) > limit or int(np.diff(ends).max(initial=0)) > limit


class _Exactly:
    """The reading of some data, line by line; lines in which every quote is where it should be are taken at a glance.

    No line is looked at more than once as one that begins a record, and once as one within a quoted field: where one
    opens a quote that is not closed for long, the next to do so goes on where its search has ended.
    """

    def __init__(self, grammar: Grammar, data: bytes, *, final: bool, limit: int) -> None:
        self.grammar = grammar
        self.data = data
        self.final = final
        self.limit = limit
        ends = line_end_positions(data) + 1
        if ends.size and not final and data.endswith(b"\r"):
            ends = ends[:-1]  # half of a CRLF, perhaps
        if final and data and (not ends.size or ends[-1] != len(data)):
            ends = np.append(ends, len(data))
        #: Just past each line.
        self.lines = array("q", ends.tobytes())
        #: The lines that have to be read, ascending.
        self.hard = self._hard(ends)
        #: The first line that leaves a quoted field, as far as it was looked for, and how.
        self.searched = 0
        self.left: Literal["closed", "torn"] | None = None
        self.ends = array("q")
        self.refused: dict[int, str] = {}

    def reading(self) -> Reading:
        grammar, data, lines, limit = self.grammar, self.data, self.lines, self.limit
        comment = grammar.comment[0] if grammar.comment else None
        line = start = passed = 0
        while line < len(lines):
            while passed < len(self.hard) and self.hard[passed] < line:
                passed += 1
            hard = self.hard[passed] if passed < len(self.hard) else len(lines)
            if hard > line:
                self.ends.extend(lines[line:hard])
                line, start = hard, lines[hard - 1]
                continue
            end = lines[line]
            if end - start > limit:
                self._refuse_line(start, end)
            elif data[start] == comment or grammar.is_closed(data, start, end):
                self.ends.append(end)
            else:
                last = self._last_line(line, start)
                if last is None:
                    return self._made()
                if last == line:
                    self.refused[len(self.ends)] = UNCLOSED_QUOTE
                line, end = last, lines[last]
                self.ends.append(end)
            line, start = line + 1, end
        in_line = len(data) - start > limit
        if in_line:
            # Half of a CRLF has to wait for the other half.
            self._refuse_line(start, len(data) - data.endswith(b"\r"))
        return self._made(in_line=in_line)

    def _hard(self, ends: Int64s) -> array[int]:
        """The numbers of lines that may be no record, where they begin outside of quotes."""
        data, grammar = self.data, self.grammar
        hard = np.zeros(ends.size + 1, np.bool_)  # the last one is for what follows the last line
        hard[:-1] = np.diff(ends, prepend=0) > self.limit
        seen = np.frombuffer(data, np.uint8)
        quotes = np.flatnonzero(seen == grammar.quote[0]) if grammar.quote else ends[:0]
        if grammar.backslash and _BACKSLASH in data:
            backslash = seen == _BACKSLASH[0]
            # Without two in a row a quote after a backslash is either escaped or in a plain field.
            several = np.flatnonzero(backslash[:-1] & backslash[1:])
            hard[np.searchsorted(ends, several, side="right")] = True
            quotes = quotes[~backslash[quotes - 1] | (quotes == 0)]
        if quotes.size:
            lines = np.searchsorted(ends, quotes, side="right")
            firsts = np.searchsorted(lines, lines)  # for each quote the first one of its line
            opening = (np.arange(quotes.size) - firsts) & 1 == 0
            delimiter = grammar.delimiter[0]
            before = seen[quotes - 1]
            starts = np.append(0, ends)[lines]
            doubled = np.append(False, np.diff(quotes) == 1)  # by the quote before it
            fits = opening & ((before == delimiter) | (quotes == starts) | (doubled & (quotes > starts)))
            after = seen[np.minimum(quotes + 1, seen.size - 1)]
            ended = (after == delimiter) | (after == _LF) | (after == _CR) | (quotes + 1 == seen.size)
            fits |= ~opening & (ended | np.append(doubled[1:], False))
            hard[lines[~fits]] = True
            # A line that ends within quotes.
            is_last = np.append(lines[1:] != lines[:-1], True)
            hard[lines[is_last & opening]] = True
        if grammar.comment:
            firsts = np.append(0, ends[:-1])[: ends.size]
            hard[:-1][seen[firsts] == grammar.comment[0]] = True
        return array("q", np.flatnonzero(hard[:-1]).tobytes())

    def _last_line(self, line: int, start: int) -> int | None:
        """The last line of a record that goes over a line end, `line` itself if it is refused, `None` if undecided."""
        if self.searched <= line:
            self.searched, self.left = line + 1, None
        while self.left is None:
            if self.searched == len(self.lines):
                return line if self.final or len(self.data) - start > self.limit else None
            begin, end = self.lines[self.searched - 1], self.lines[self.searched]
            if end - start > self.limit:
                return line
            state = self.grammar.after(self.data, begin, end)
            if state == "open":
                self.searched += 1
            else:
                self.left = state
        fits = self.left == "closed" and self.lines[self.searched] - start <= self.limit
        return self.searched if fits else line

    def _refuse_line(self, start: int, end: int) -> None:
        """Refuse a line that is too long: the limit's worth is its record, and the rest is passed over."""
        middle = start + self.limit
        middle -= self.data[middle - 1] == _CR  # no line end is torn in two
        self.refused[len(self.ends)] = RECORD_TOO_LONG
        self.ends.append(middle)
        if end > middle:
            self.refused[len(self.ends)] = CONTINUED
            self.ends.append(end)

    def _made(self, *, in_line: bool = False) -> Reading:
        ends, lines = np.frombuffer(self.ends, np.int64), np.frombuffer(self.lines, np.int64)
        lines = lines[: np.searchsorted(lines, ends[-1])] if ends.size else _NONE
        inner = lines[ends[np.searchsorted(ends, lines)] != lines]
        return Reading(ends, inner, self.refused, in_line)
