"""Where the keys of a TOML file stand: tomllib reads the values and keeps no places."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Final, NamedTuple

#: The keys that lead to a value, and numbers for the items of arrays.
Path = tuple[str | int, ...]


class Place(NamedTuple):
    """A line and a column, both from 1."""

    line: int
    column: int


_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY: Final = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*'""")
_STRING: Final = re.compile(
    r'''"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}|\'\'\'.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*\'''', re.DOTALL
)
_OTHER_VALUE: Final = re.compile(r"[^,\]}#\r\n]*")


def find_places(text: str) -> Mapping[Path, Place]:
    """The places of all keys, and of the items of arrays.

    :param text: TOML that tomllib has read.
    """
    return _Scanner(text).places()


class _Scanner:
    """Walks through a file once. Since that is valid, what is looked for is there."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._places: dict[Path, Place] = {}

    def places(self) -> Mapping[Path, Place]:
        table: Path = ()
        while self._next():
            if self._next() == "[":
                brackets = 2 if self._text.startswith("[[", self._position) else 1
                self._position += brackets
                table = self._key(())
                self._position += brackets
            else:
                self._pair(table)
        return self._places

    def _next(self) -> str:
        """The character that comes after white space and comments; nothing at the end."""
        self._take(_BLANK)
        return self._text[self._position : self._position + 1]

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._position)
        assert found is not None  # noqa: S101 (tomllib has read it)
        self._position = found.end()
        return found[0]

    def _note(self, path: Path) -> None:
        before = self._text[: self._position]
        line_start = before.rfind("\n") + 1
        self._places.setdefault(path, Place(before.count("\n") + 1, self._position - line_start + 1))

    def _key(self, path: Path) -> Path:
        """Read a key with its dots, and what is blank behind it; every part of it has a place."""
        while True:
            self._next()
            begin = self._position
            raw = self._take(_KEY)
            end, self._position = self._position, begin
            path = (*path, tomllib.loads(f"key = {raw}")["key"] if raw[0] in "\"'" else raw)
            self._note(path)
            self._position = end
            if self._next() != ".":
                return path
            self._position += 1

    def _pair(self, table: Path) -> None:
        path = self._key(table)
        self._position += 1  # the equals sign
        self._value(path)

    def _value(self, path: Path) -> None:
        match self._next():
            case "[":
                self._position += 1
                number = 0
                while self._next() != "]":
                    self._note((*path, number))
                    self._value((*path, number))
                    number += 1
                    self._past_comma()
                self._position += 1
            case "{":
                self._position += 1
                while self._next() != "}":
                    self._pair(path)
                    self._past_comma()
                self._position += 1
            case '"' | "'":
                self._take(_STRING)
            case _:
                self._take(_OTHER_VALUE)

    def _past_comma(self) -> None:
        if self._next() == ",":
            self._position += 1
