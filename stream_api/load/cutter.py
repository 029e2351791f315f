"""Cuts bytes into records, batches and segments: at the same places, however the bytes arrive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from stream_api.errors import Failure
from stream_api.load.grammar import Grammar, count_lines
from stream_api.load.model import Batch, Int64s

_BOM = b"\xef\xbb\xbf"
_NO_RECORDS: Int64s = np.empty(0, np.int64)


#: How files that are often taken for CSV begin; each has a byte that no name of a column can have.
_NOT_TEXT: Final = {
    b"\x1f\x8b": "compressed by gzip",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet (.xlsx)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\xd0\xcf\x11\xe0": "a spreadsheet (.xls)",
}


def find_header(data: bytes, grammar: Grammar, *, final: bool) -> tuple[list[str], int] | None:
    """The names in the header and the offset just past it, or `None` while `data` does not hold all of it.

    A byte order mark and blank lines before the header are passed over.

    :param data: the beginning of the file.
    :param final: nothing follows `data`.
    :raises Failure: `encoding_unsupported`, when the header is not UTF-8; `header_mismatch`, when there is none.
    """
    for magic, kind in _NOT_TEXT.items():
        if data.startswith(magic):
            message = f"The file is {kind}, not CSV text. Unpack it and upload the CSV file itself, in UTF-8."
            raise Failure("encoding_unsupported", message)
    start = len(_BOM) if data.startswith(_BOM) else 0
    if not final and len(data) < len(_BOM) and _BOM.startswith(data):
        return None
    rest = data[start:]
    position = 0
    for end in grammar.record_ends(rest, final=final).tolist():
        record = rest[position:end]
        position = end
        if record in {b"\n", b"\r\n", b"\r"}:
            continue
        try:
            text = [(value or b"").decode() for value in grammar.fields(record)]
        except UnicodeDecodeError as exc:
            message = (
                "The header is not valid UTF-8. Save the file as UTF-8 and upload it again."
                if not data.startswith((b"\xff\xfe", b"\xfe\xff"))
                else "The file is encoded in UTF-16. Save it as UTF-8 and upload it again."
            )
            raise Failure("encoding_unsupported", message) from exc
        return text, start + end
    if final:
        message = "The file has no header: its first line must name the columns."
        raise Failure("header_mismatch", message, missing=[], unknown=[], repeated=[], generated=[], nearest={})
    return None


class Cutter:
    """Cuts one run of bytes of the decoded file, handed in piece by piece, into batches.

    Segment k begins at the first record that starts at or past byte k × `segment_bytes`; a record therefore belongs
    to segment `start // segment_bytes`, whatever the pieces were. The header, with what stands before it, is a
    batch of its own without records, and belongs to segment 0.

    Memory: what has been handed in and not cut (at most `batch_bytes` + one piece + `max_record_bytes`), and while
    cutting the batches made of it and some 2 bytes of index for each byte.

    :param start: byte of the decoded file at which the pieces begin; 0, or where a record begins.
    :param line: line of the file at `start`, from 1.
    :param batch_bytes: batches close at the first record that reaches this size.
    """

    def __init__(
        self,
        grammar: Grammar,
        *,
        segment_bytes: int,
        batch_bytes: int,
        max_record_bytes: int,
        start: int = 0,
        line: int = 1,
    ) -> None:
        self._grammar = grammar
        self._segment_bytes = segment_bytes
        self._batch_bytes = batch_bytes
        self._max_record_bytes = max_record_bytes
        self._start = start
        self._line = line
        self._header_wanted = start == 0
        self._pieces: list[bytes] = []
        self._held = 0
        self._wanted = batch_bytes

    def add(self, piece: bytes) -> bool:
        """Take `piece`; True when `cut` is worth calling."""
        self._pieces.append(piece)
        self._held += len(piece)
        return self._held >= self._wanted

    def cut(self, *, final: bool = False) -> list[Batch]:
        """The batches that can be made of what was taken; with `final`, of all of it.

        :raises Failure: `record_too_long`, `encoding_unsupported` or `header_mismatch` (from the header).
        """
        data = b"".join(self._pieces)
        self._pieces.clear()
        batches = list(self._batches(data, final=final))
        taken = batches[-1].end - batches[0].start if batches else 0
        rest = data[taken:]
        self._pieces = [rest]
        self._held = len(rest)
        # A long unfinished record is looked at again only when as much again has come: never quadratic.
        self._wanted = max(self._batch_bytes, 2 * self._held)
        return batches

    def _batches(self, data: bytes, *, final: bool) -> Iterator[Batch]:
        if self._header_wanted:
            found = find_header(data, self._grammar, final=final)
            if found is None or found[1] > self._max_record_bytes:
                self._refuse_longer(len(data) if found is None else found[1], self._line)
                return
            self._header_wanted = False
            yield self._batch(data[: found[1]], _NO_RECORDS, 0)
            data = data[found[1] :]
        ends = self._grammar.record_ends(data, final=final)
        starts = np.concatenate((np.zeros(1, np.int64), ends[:-1])) if ends.size else ends
        self._refuse_long_records(data, starts, ends)
        first = 0
        while first < ends.size:
            begin = int(starts[first])
            segment = (self._start) // self._segment_bytes
            until_segment = np.searchsorted(starts, begin + (segment + 1) * self._segment_bytes - self._start)
            until_full = np.searchsorted(ends, begin + self._batch_bytes) + 1
            last = min(int(until_segment), int(until_full), int(ends.size))
            yield self._batch(data[begin : ends[last - 1]], ends[first:last] - begin, segment)
            first = last

    def _batch(self, data: bytes, ends: Int64s, segment: int) -> Batch:
        start, line, lines = self._start, self._line, count_lines(data)
        self._start += len(data)
        self._line += lines
        return Batch(segment, start, line, data, ends, lines, self._start // self._segment_bytes != segment)

    def _refuse_long_records(self, data: bytes, starts: Int64s, ends: Int64s) -> None:
        tail = int(ends[-1]) if ends.size else 0
        long = np.flatnonzero(ends - starts > self._max_record_bytes)
        if long.size:
            begin = int(starts[long[0]])
            self._refuse_longer(int(ends[long[0]]) - begin, self._line + count_lines(data[:begin]))
        if len(data) - tail > self._max_record_bytes:
            self._refuse_longer(len(data) - tail, self._line + count_lines(data[:tail]))

    def _refuse_longer(self, size_bytes: int, line: int) -> None:
        if size_bytes > self._max_record_bytes:
            message = (
                f"The record that begins on line {line} is longer than {self._max_record_bytes} bytes. "
                "Most likely a quote on that line is not closed; mend it, or raise STREAM_API_MAX_RECORD_BYTES."
            )
            raise Failure("record_too_long", message, line=line, limitBytes=self._max_record_bytes)
