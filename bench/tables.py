"""The tables of the benchmarks, each with the file that is loaded into it. The same arguments give the same bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bench.generate import generate

#: Where the tables are made, so that nothing else in the database is touched.
SCHEMA: Final = "stream_api_bench"
#: Rows that are made at once.
_BATCH: Final = 2_000

_WORDS: Final = (
    "order", "invoice", "delivered", "customer", "the", "of", "warehouse", "Zürich", "returned", "and", "a", "price",
    "quantity", "with", "shipping", "address", "東京", "pending", "refund", "to", "from", "café", "note", "item",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table, and how its file is made.

    :param name: without the schema.
    :param title: for readers.
    :param columns: names and types for SQL, in the file's order.
    :param key: column of the primary key; `None` where the rows have none.
    :param pieces: the file in pieces, from a number of rows and a seed.
    """

    name: str
    title: str
    columns: tuple[tuple[str, str], ...]
    key: str | None
    pieces: Callable[[int, int], Iterator[bytes]]

    @property
    def column_names(self) -> str:
        """All of them, for SQL and for the header."""
        return ",".join(name for name, _ in self.columns)

    def target(self, *, keyed: bool) -> str:
        """The qualified name of the table.

        :param keyed: the one with its primary key, or its twin without.
        """
        return f"{SCHEMA}.{self.name}" if keyed and self.key is not None else f"{SCHEMA}.{self.name}_no_key"

    def ddl(self, *, keyed: bool) -> str:
        """`CREATE TABLE` for `target`."""
        lines = [f"{name} {kind}" for name, kind in self.columns]
        if keyed and self.key is not None:
            lines.append(f"PRIMARY KEY ({self.key})")
        return f"CREATE TABLE {self.target(keyed=keyed)} ({', '.join(lines)})"


def _events(rows: int, seed: int) -> Iterator[bytes]:
    return generate(rows, seed=seed)


def _file(header: str, make: Callable[[random.Random, int], str]) -> Callable[[int, int], Iterator[bytes]]:
    """A generator of files from a function that makes the row of a number, with its line end."""

    def pieces(rows: int, seed: int) -> Iterator[bytes]:
        yield f"{header}\n".encode()
        for first in range(0, rows, _BATCH):
            rng = random.Random(f"{seed}:{first}")
            yield "".join(make(rng, number) for number in range(first, min(first + _BATCH, rows))).encode()

    return pieces


def _table(
    name: str, title: str, columns: tuple[tuple[str, str], ...], key: str | None, make: Callable[..., str]
) -> Table:
    return Table(name, title, columns, key, _file(",".join(column for column, _ in columns), make))


def _quoted(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False).replace('"', '""')
    return f'"{text}"'


def _uuid(rng: random.Random) -> str:
    h = rng.randbytes(16).hex()
    return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-a{h[17:20]}-{h[20:]}"


def _moment(n: int) -> str:
    return f"2026-{1 + n % 12:02}-{1 + n % 28:02}T{n % 24:02}:{n % 60:02}:{n // 7 % 60:02}Z"


def _wide_row(rng: random.Random, number: int) -> str:
    b = rng.randbytes(36)
    texts = (_WORDS[each % len(_WORDS)] for each in b[:8])
    integers = (str(b[each] << 16 | b[each + 1] << 8 | number & 255) for each in range(8, 16))
    amounts = (f"{b[each] << 8 | b[each + 1]}.{b[each] % 100:02}" for each in range(16, 22))
    moments = (_moment(number + each) for each in b[22:28])
    flags = ("t" if each & 1 else "f" for each in b[28:32])
    dates = (f"2026-{1 + each % 12:02}-{1 + each % 28:02}" for each in b[32:36])
    ids = (_uuid(rng) for _ in range(3))
    return ",".join([str(number), *texts, *integers, *amounts, *moments, *flags, *dates, *ids]) + "\n"


def _narrow_row(rng: random.Random, number: int) -> str:
    a = rng.getrandbits(60)
    return f"{number},{a & 0x3FFFFFFF},{a >> 30 & 0xFFFF},{a >> 46 & 0xFFF},{a >> 58}\n"


#: Long texts are cut from it: of words, so that Postgres compresses it as it would compress prose.
_PROSE: Final = " ".join(random.Random("prose").choices(_WORDS, k=60_000))


def _long_row(rng: random.Random, number: int) -> str:
    start = rng.randrange(len(_PROSE) - 6_000)
    return f'{number},title {number},"{_PROSE[start : start + rng.randrange(2_000, 6_000)]}"\n'


def _json_row(rng: random.Random, number: int) -> str:
    b = rng.randbytes(48)
    fields: dict[str, object] = {f"{_WORDS[each % 12]}_{place}": each << 8 | place for place, each in enumerate(b[:32])}
    fields |= {f"text_{place}": f'say "{_WORDS[each % len(_WORDS)]}", {each}' for place, each in enumerate(b[32:44])}
    fields["items"] = [{"sku": f"S-{each}", "qty": each % 9, "price": each / 4} for each in b[44:]]
    return f"{_uuid(rng)},{number},{_quoted(fields)}\n"


def _digits_row(rng: random.Random, _number: int) -> str:
    return ",".join(f"{rng.getrandbits(132):040d}"[-40:]) + "\n"


_EVENT_COLUMNS: Final = (
    ("id", "uuid"), ("event_type", "text NOT NULL"), ("source", "text NOT NULL"), ("payload", "jsonb NOT NULL"),
    ("occurred_at", "timestamptz NOT NULL"), ("amount", "numeric(12, 2)"), ("status", "text"),
)  # fmt: skip

EVENTS: Final = Table("events", "7 columns (webhook_events)", _EVENT_COLUMNS, "id", _events)
#: The same file. A numeric without precision has no exact form in Arrow, so the service sends this table as CSV.
EVENTS_AS_CSV: Final = Table(
    "events_as_csv",
    "7 columns, COPY in CSV",
    tuple((name, "numeric" if name == "amount" else kind) for name, kind in _EVENT_COLUMNS),
    "id",
    _events,
)
WIDE: Final = _table(
    "wide",
    "40 columns",
    (
        ("id", "bigint"),
        *((f"text_{n}", "text") for n in range(8)),
        *((f"integer_{n}", "integer") for n in range(8)),
        *((f"amount_{n}", "numeric(12, 2)") for n in range(6)),
        *((f"at_{n}", "timestamptz") for n in range(6)),
        *((f"flag_{n}", "boolean") for n in range(4)),
        *((f"day_{n}", "date") for n in range(4)),
        *((f"ref_{n}", "uuid") for n in range(3)),
    ),
    "id",
    _wide_row,
)
NARROW: Final = _table(
    "narrow",
    "narrow integers",
    (("id", "bigint"), ("a", "integer"), ("b", "integer"), ("c", "smallint"), ("d", "smallint")),
    "id",
    _narrow_row,
)
LONG: Final = _table(
    "long_text",
    "long text (4 KB)",
    (("id", "bigint"), ("title", "text"), ("body", "text")),
    "id",
    _long_row,
)
WIDE_JSON: Final = _table(
    "wide_json",
    "wide JSON (1.5 KB)",
    (("id", "uuid"), ("number", "bigint"), ("document", "jsonb")),
    "id",
    _json_row,
)
#: Typed, such rows weigh most against their text.
DIGITS: Final = _table(
    "digits", "40 one-digit columns", tuple((f"d{n}", "smallint") for n in range(40)), None, _digits_row
)

TABLES: Final = (EVENTS, EVENTS_AS_CSV, WIDE, NARROW, LONG, WIDE_JSON, DIGITS)
