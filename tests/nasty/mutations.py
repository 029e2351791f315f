"""Valid files made at random, and random damage to them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from stream_api.dialects.dialect import Encoding

#: Columns of the tables that the files go into.
COLUMNS: Final = ("id", "name", "amount", "note", "day", "doc")
#: What is written, and what Postgres says it is.
_Field = tuple[str, str | None]

_NAMES: Final[list[_Field]] = [
    ("shop", "shop"),
    ("", None),
    ('""', ""),
    ('5" pipe', '5" pipe'),
    ('"Doe, Jane"', "Doe, Jane"),
    ('"J. ""Bo"" Doe"', 'J. "Bo" Doe'),
    ("caf\u00e9 \u20ac", "caf\u00e9 \u20ac"),
    ("\\N", "\\N"),
    ("x" * 70, "x" * 70),
]
_NOTES: Final[list[_Field]] = [
    ("plain", "plain"),
    ("", None),
    ('"two\nlines"', "two\nlines"),
    ('"three\r\n\r\nlines, with ""quotes"""', 'three\r\n\r\nlines, with "quotes"'),
    ('"""said"""', '"said"'),
    ("it's", "it's"),
    ("a b  c", "a b  c"),
    ("C:\\dir", "C:\\dir"),
]
#: Fields whose opening quote could as well be a closing one: what follows it may end a field.
_TEMPTING: Final[list[_Field]] = [
    ('", and more"', ", and more"),
    ('"\nnext"', "\nnext"),
    ('""", x"', '", x'),
    ('"; x"', "; x"),
]
_DOCS: Final[list[_Field]] = [
    ("", None),
    ('"{""n"": [1, 2]}"', '{"n": [1, 2]}'),
    ('"{""a"":\n ""b""}"', '{"a":\n "b"}'),
    ("17", "17"),
]
_ENCODINGS: Final[list[Encoding]] = ["utf-8", "utf-8", "utf-8", "utf-16-le", "utf-16-be", "windows-1252"]
_MARKS: Final = {"utf-8": b"\xef\xbb\xbf", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}


@dataclass(frozen=True)
class Record:
    """A record of a valid file.

    :param start: byte of the file at which it begins, as long as nothing is damaged.
    :param values: what the table shows of it.
    :param tempting: a stray quote before it may find its end within.
    """

    start: int
    data: bytes
    values: tuple[str | None, ...]
    tempting: bool

    @property
    def end(self) -> int:
        """Just past it."""
        return self.start + len(self.data)


@dataclass(frozen=True)
class File:
    """A valid file, whose columns are `COLUMNS`."""

    header: bytes
    records: list[Record]
    encoding: Encoding

    @property
    def data(self) -> bytes:
        """All of it."""
        return self.header + b"".join(record.data for record in self.records)


@dataclass(frozen=True)
class Damage:
    """What was done to a file.

    :param edits: where, up to where, and what stands there now; ascending, and apart.
    """

    data: bytes
    edits: list[tuple[int, int, bytes]] = field(default_factory=list)

    def touches(self, record: Record) -> bool:
        """Whether something was done within a record, or put before it."""
        return any(start < record.end and max(end, start + 1) > record.start for start, end, _ in self.edits)

    def moved(self, position: int) -> int:
        """Where the byte is now that was at `position`, which is in no edit."""
        return position + sum(len(put) - (end - start) for start, end, put in self.edits if end <= position)


def make_file(rng: random.Random) -> File:
    """A file of some dozens of rows."""
    encoding = rng.choice(_ENCODINGS)
    delimiter = rng.choice([",", ",", ";", "\t"])
    line_end = rng.choice(["\n", "\n", "\r\n", "\r"])
    mark = _MARKS.get(encoding, b"") if rng.random() < 0.3 or encoding.startswith("utf-16") else b""
    notes = [*_NOTES, *_TEMPTING] if rng.random() < 0.25 else _NOTES
    header = mark + (delimiter.join(COLUMNS) + line_end).encode(encoding)
    records, position = list[Record](), len(header)
    rows = rng.randint(3, 25)
    keys = [str(number) for number in range(rows)]
    if rng.random() < 0.2:  # some come again
        keys = [rng.choice(keys) for _ in keys]
    for number in range(rows):
        fields: list[_Field] = [
            (keys[number], keys[number]),
            rng.choice(_NAMES),
            (f"{number}.50", f"{number}.50"),
            rng.choice(notes),
            (f"2026-01-{1 + number % 28:02}",) * 2,
            rng.choice(_DOCS),
        ]
        text = delimiter.join(_written(each[0], delimiter) for each in fields)
        text += line_end if number < rows - 1 or rng.random() < 0.8 else ""
        data = text.encode(encoding)
        values = tuple(value for _, value in fields)
        records.append(Record(position, data, values, tempting=any(each in _TEMPTING for each in fields)))
        position += len(data)
    return File(header, records, encoding)


def _written(text: str, delimiter: str) -> str:
    """A field that has to be quoted in any dialect of ours is: those of the lists are so for commas."""
    return f'"{text}"' if delimiter in text and not text.startswith('"') else text


def damage(rng: random.Random, file: File) -> Damage:
    """One to three mutations: bytes flipped, dropped, doubled and put in, at quotes and line ends above all."""
    data, unit = file.data, 2 if file.encoding.startswith("utf-16") else 1
    if unit > 1 and rng.random() < 0.2:
        unit = 1
    wanted = rng.choice([1, 1, 1, 2, 3])
    first = 0 if rng.random() < 0.05 else len(file.header)
    edits: list[tuple[int, int, bytes]] = []
    while len(edits) < wanted:
        start = _place(rng, data, first, unit)
        size, put = _mutation(rng, data, start, unit)
        end = min(start + size, len(data))
        # Apart, or what is done to a record could not be told.
        if all(end < other or start > other_end for other, other_end, _ in edits):
            edits.append((start, end, put))
    edits.sort()
    made, position = list[bytes](), 0
    for start, end, put in edits:
        made += [data[position:start], put]
        position = end
    return Damage(b"".join([*made, data[position:]]), edits)


def _place(rng: random.Random, data: bytes, first: int, unit: int) -> int:
    kind = rng.random()
    place = rng.randrange(first, len(data))
    if kind < 0.6:
        mark = rng.choice(b'"""\n\r,;')
        found = data.find(bytes([mark]), place)
        # On it or behind it.
        place = place if found < 0 else min(found + unit * rng.randint(0, 1), len(data) - 1)
    return first + (place - first) // unit * unit


def _mutation(rng: random.Random, data: bytes, start: int, unit: int) -> tuple[int, bytes]:
    """So many bytes from `start` on are replaced by this."""
    order = "utf-16-be" if unit > 1 and data.startswith(_MARKS["utf-16-be"]) else "utf-16-le"
    run = unit * rng.choice([1, 1, 1, 2, 4, 30, 200])
    match rng.choice(["flip", "drop", "double", "insert", "insert", "replace"]):
        case "flip":
            flipped = bytearray(data[start : start + unit])
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            return unit, bytes(flipped)
        case "drop":
            return run, b""
        case "double":
            return 0, data[start : start + run]
        case kind:
            put = rng.choice(
                [
                    '"',
                    '"',
                    '"',
                    '""',
                    '"""',
                    "\n",
                    "\r",
                    "\r\n",
                    ",",
                    ";",
                    '",',
                    ',"',
                    '"\n',
                    '\n"',
                    "\0",
                    "\\",
                    "#",
                    "x",
                ]
            ).encode(order if unit > 1 else "utf-8")
            if unit == 1 and rng.random() < 0.1:
                put = rng.choice([b"\xff", b"\xe9", b"\xc3", b"\xef\xbb\xbf", b"\x1a", b"\x80"])
            return (unit if kind == "replace" else 0), put
