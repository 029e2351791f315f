"""The grammar once more, by the plainest code: a character at a time, and with no thought of speed."""

from __future__ import annotations

from dataclasses import dataclass

from stream_api.dialects.dialect import Dialect

LINE_ENDS = ("\r\n", "\n", "\r")


@dataclass
class Read:
    """One record.

    :param refused: a code if it is none.
    """

    start: int
    end: int
    fields: list[str | None]
    refused: str | None = None
    comment: bool = False


def line_end_at(text: str, position: int) -> int:
    """Characters of the line end at `position`; 0 if there is none."""
    return next((len(end) for end in LINE_ENDS if text.startswith(end, position)), 0)


def end_of_line(text: str, position: int) -> int:
    """Just past the line that `position` lies in."""
    while position < len(text):
        if size := line_end_at(text, position):
            return position + size
        position += 1
    return position


def read_record(text: str, start: int, dialect: Dialect) -> Read:
    """One record from `start`, as far as the grammar goes."""
    position, fields = start, list[str | None]()
    while True:
        value: str | None = None
        if dialect.quote is not None and text.startswith(dialect.quote, position):
            quoted_from, value = position, ""
            position += 1
            while True:
                here, following = text[position : position + 1], text[position + 1 : position + 2]
                if not here:
                    return Read(start, position, [], "unclosed_quote")
                if dialect.escape == "backslash" and here == "\\" and following in (dialect.quote, "\\") and following:
                    value, position = value + following, position + 2
                elif here == dialect.quote and following == dialect.quote:
                    value, position = value + dialect.quote, position + 2
                elif here == dialect.quote:
                    break
                else:
                    value, position = value + here, position + 1
            position += 1
            several = end_of_line(text, quoted_from) < position
            ended = position == len(text) or text[position] == dialect.delimiter or line_end_at(text, position)
            if several and not ended:
                return Read(start, position, [], "unclosed_quote")
        while position < len(text) and text[position] != dialect.delimiter and not line_end_at(text, position):
            value, position = (value or "") + text[position], position + 1
        fields.append(value)
        if text[position : position + 1] == dialect.delimiter:
            position += 1
            continue
        return Read(start, position + line_end_at(text, position), fields)


def read(text: str, dialect: Dialect, limit: int) -> list[Read]:
    """All records of a text, blank lines and comments among them."""
    found, position = list[Read](), 0
    while position < len(text):
        line = end_of_line(text, position)
        if dialect.comment is not None and text.startswith(dialect.comment, position):
            record = Read(position, line, [], comment=True)
        elif line - position > limit:
            record = Read(position, line, [], "record_too_long")
        else:
            record = read_record(text, position, dialect)
            if record.refused or record.end - position > limit:
                record = Read(position, line, [], "unclosed_quote")
        found.append(record)
        position = record.end
    return found
