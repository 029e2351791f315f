"""Files whose contents are known row by row, and the same sum of them from Python and from Postgres."""

from __future__ import annotations

import functools
import hashlib
import random
from dataclasses import dataclass
from typing import Final

HEADER: Final = b"id,event_type,source,payload,occurred_at,amount,status\n"

#: The sum of a hash of each row: it does not depend on their order, and a row too many or too few changes it.
CHECKSUM: Final = """
SELECT coalesce(sum(('x' || substr(md5(concat_ws('|', id::text, event_type, source, payload::text,
       to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), coalesce(amount::text, 'null'),
       coalesce('=' || status, 'null'))), 1, 15))::bit(60)::bigint), 0)::text
FROM webhook_events
"""

_SOURCES: Final = ("shop", "warehouse, north", "Bücher", "two\nlines", "東京支店")
_STATUSES: Final = (None, "", "ok", 'on "hold"')


@dataclass(frozen=True)
class File:
    """A CSV for `webhook_events`.

    :param rows: all rows, without the header.
    :param bad: those that are refused.
    :param checksum: of the others, as `CHECKSUM` gives it.
    """

    data: bytes
    rows: int
    bad: int
    checksum: int

    @property
    def good(self) -> int:
        """Rows that are loaded."""
        return self.rows - self.bad


@functools.lru_cache(maxsize=4)
def make_file(rows: int, *, seed: int = 0, bad_every: int = 1009) -> File:
    """A file; the same arguments give the same bytes.

    :param bad_every: so many rows have one among them that has no valid id or a field too few.
    """
    rng = random.Random(seed)
    lines, checksum, bad = [HEADER], 0, 0
    for number in range(rows):
        if number % bad_every == bad_every - 1:
            bad += 1
            lines.append(b"no-uuid,a,b,{},2026-11-23T10:00:00Z,1,\n" if bad % 2 else b"too,few\n")
            continue
        line, known = _row(rng, number)
        lines.append(line)
        checksum += known
    return File(b"".join(lines), rows, bad, checksum)


def _row(rng: random.Random, number: int) -> tuple[bytes, int]:
    """A line of the file, and what it adds to the checksum."""
    bits = rng.getrandbits(128)
    digits = f"{bits:032x}"
    identity = f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"
    source, status = _SOURCES[bits % 5], _STATUSES[bits >> 8 & 3]
    seconds = number % 86_400
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    amount = "" if bits >> 16 & 7 == 0 else f"{bits >> 24 & 0xFFFF}.{number % 100:02}"
    # As jsonb shows it: no other spaces, the shorter key first.
    payload = f'{{"n": {number}, "text": "zwölf, {digits[:6]}"}}'
    line = (
        f'{identity},order.created,"{source}","{payload.replace(chr(34), chr(34) * 2)}",2026-11-23T{clock}Z,{amount},'
        f"{_field(status)}\n"
    )
    known = "|".join(
        (
            identity, "order.created", source, payload, f"2026-11-23 {clock}", amount or "null",
            "null" if status is None else f"={status}",
        )
    )  # fmt: skip
    return line.encode(), int(hashlib.md5(known.encode(), usedforsecurity=False).hexdigest()[:15], 16)


def _field(value: str | None) -> str:
    """Quoted, for an empty string is not NULL."""
    return "" if value is None else '"' + value.replace('"', '""') + '"'
