"""Make a CSV file for `webhook_events`: `python -m bench.generate --rows N --seed S --invalid SHARE -o FILE`.

The same arguments give the same bytes. A row has about 200 bytes; among the valid ones are JSON with doubled quotes,
line ends inside of quotes, text that is not ASCII, empty fields and quoted empty strings. Of the invalid ones there
are equally many of each kind, and a kind is called as the service calls the rejection.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

HEADER: Final = "id,event_type,source,payload,occurred_at,amount,status\n"
#: The kinds of invalid row, in the order in which they take turns.
KINDS: Final = (
    "wrong_field_count",
    "missing_value",
    "invalid_uuid",
    "invalid_number",
    "invalid_date",
    "invalid_json",
    "nul_byte",
    "invalid_utf8",
)
#: Rows that are made at once: f-strings in batches of this size give some 400,000 rows a second.
_BATCH: Final = 5_000

_TYPES: Final = (
    "order.created", "order.paid", "order.shipped", "order.refunded", "invoice.finalized", "customer.updated",
    "payment.failed", "subscription.renewed",
)  # fmt: skip
# One is quoted for its comma, one is quoted without need, one holds a quote.
_SOURCES: Final = (
    "shop.example.com", "billing-eu-1", "Bücher & Söhne", '"warehouse, north"', "東京支店", '"pos-17"', "api/v2",
    '"the ""old"" shop"',
)  # fmt: skip
# As they stand in the file: the quotes of JSON are doubled. %d is the number of the row.
_PAYLOADS: Final = tuple(
    '"' + text.replace('"', '""') + '"'
    for text in (
        '{"order": %d, "items": [{"sku": "A-1", "qty": 2}], "note": "leave at door"}',
        '{"order": %d, "customer": {"name": "Zoë", "city": "Zürich"}, "tags": []}',
        '{"invoice": %d, "lines": 3, "paid": true, "coupon": null, "total": 17.5}',
        '{"event": %d,\n "text": "two lines of JSON",\n "flags": ["new", "web"]}',
        '{"ref": "R%d", "comment": "she said \\"yes\\", twice", "retry": false}',
        '{"id": %d, "emoji": "📦", "escaped": "\\u00e9t\\u00e9 \\n tab\\t", "deep": [[1]]}',
        '{"n": %d, "text": "a, b; c", "list": [1, 2.5, -3e2], "empty": {}}',
        '[%d, "array at the top", {"nested": {"more": ["x", "y", null]}}]',
    )
)
_STATUSES: Final = ("delivered", "pending", "failed", "", '""', "retried", "livré", '"on ""hold"""')

_BAD_UUIDS: Final = (
    "not-a-uuid", "1234", "gggggggg-0000-4000-8000-000000000000", "00000000-0000-4000-8000-00000000000",
)  # fmt: skip
_BAD_NUMBERS: Final = ("abc", "1.2.3", "12e", "--5", "1 000")
_BAD_DATES: Final = ("not a date", "20xx-01-01T00:00:00Z", "23rd of Movember", "2026-11")
_BAD_JSON: Final = ('"{""a"": }"', "{broken", "\"{'a': 1}\"", '"{""a"": 1,}"', '"{""a"": 1} x"')
# Lone surrogates become these bytes by `surrogateescape`: a lone start, 0xFF, an overlong form, a cut sequence.
_BAD_UTF8: Final = ("\udcc3", "\udcff\udcfe", "\udcc0\udcaf", "\udce2\udc82")


@dataclass
class Summary:
    """What a file holds.

    :param rows: all rows, without the header.
    :param valid: those that the service must load.
    :param invalid: how many of each kind it must refuse.
    :param size_bytes: of the whole file.
    """

    rows: int = 0
    valid: int = 0
    invalid: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    size_bytes: int = 0


def generate(rows: int, *, seed: int = 0, invalid: float = 0.0, summary: Summary | None = None) -> Iterator[bytes]:
    """The file in pieces of about a megabyte.

    :param rows: without the header.
    :param seed: another seed gives other ids and values.
    :param invalid: share of invalid rows, from 0 to 1; floor(rows × invalid) are.
    :param summary: filled in as the pieces are taken.
    """
    if not 0 <= invalid <= 1:
        msg = f"the share of invalid rows is a number from 0 to 1, not {invalid}"
        raise ValueError(msg)
    counts = Summary() if summary is None else summary
    piece = HEADER.encode()
    counts.size_bytes += len(piece)
    yield piece
    broken = 0
    for first in range(0, rows, _BATCH):
        count = min(_BATCH, rows - first)
        rng = random.Random(f"{seed}:{first}")
        lines = _valid_rows(rng, first, count)
        wanted = int(invalid * (first + count)) - broken
        for index in rng.sample(range(count), wanted):
            kind = KINDS[broken % len(KINDS)]
            lines[index] = _invalid_row(kind, broken // len(KINDS), lines[index][:36])
            counts.invalid[kind] += 1
            broken += 1
        piece = "".join(lines).encode("utf-8", "surrogateescape")
        counts.rows += count
        counts.valid += count - wanted
        counts.size_bytes += len(piece)
        yield piece


def write(target: BinaryIO, rows: int, *, seed: int = 0, invalid: float = 0.0) -> Summary:
    """Write the file and say what is in it. Arguments as for `generate`."""
    summary = Summary()
    target.writelines(generate(rows, seed=seed, invalid=invalid, summary=summary))
    return summary


def _valid_rows(rng: random.Random, first: int, count: int) -> list[str]:
    # Ids are random (version 4). Chance makes two equal ones of five million with a probability of 1 in 10^24.
    digits = rng.randbytes(16 * count).hex()
    picks = rng.randbytes(6 * count)
    lines = []
    for index in range(count):
        number = first + index
        h = digits[32 * index : 32 * index + 32]
        a, b, c, d, e, f = picks[6 * index : 6 * index + 6]
        second = number % 86_400
        when = f"2026-{1 + e % 12:02}-{1 + f % 28:02}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        when += ("Z", f".{number % 1_000_000:06}Z", "+02:00", f".{number % 1000:03}-05:30")[e & 3]
        amount = "" if f < 16 else f"{(a << 8 | b) - 6_000}.{c % 100:02}"
        lines.append(
            f"{h[:8]}-{h[8:12]}-4{h[13:16]}-a{h[17:20]}-{h[20:]},{_TYPES[a & 7]},{_SOURCES[b & 7]},"
            f"{_PAYLOADS[c & 7] % number},{when},{amount},{_STATUSES[d & 7]}\n"
        )
    return lines


def _invalid_row(kind: str, turn: int, uuid: str) -> str:
    """A row with one fault.

    :param turn: how many of this kind there were; each kind has several forms.
    """
    good = [uuid, "order.created", "shop", '"{""n"": 1}"', "2026-11-23T10:00:00Z", "1.50", "pending"]

    def put(column: int, forms: tuple[str, ...]) -> None:
        good[column] = forms[turn % len(forms)]

    match kind:
        case "wrong_field_count":
            good = [good[:6], [*good, "extra"], good[:1], [*good, "", ""]][turn % 4]
        case "missing_value":
            good[turn % 5] = ""
        case "invalid_uuid":
            put(0, _BAD_UUIDS)
        case "invalid_number":
            put(5, _BAD_NUMBERS)
        case "invalid_date":
            put(4, _BAD_DATES)
        case "invalid_json":
            put(3, _BAD_JSON)
        case "nul_byte":
            put(2, ("sh\0op", "\0", '"quoted \0"'))
        case "invalid_utf8":
            put(1 + turn % 2, tuple(f"sh{bad}op" for bad in _BAD_UTF8))
        case _:
            msg = f"there is no kind {kind}"
            raise ValueError(msg)
    return ",".join(good) + "\n"


def positive(text: str) -> int:
    """A number of rows, for argparse."""
    number = int(text)
    if number < 1:
        msg = f"{text} is not a positive number"
        raise argparse.ArgumentTypeError(msg)
    return number


def share(text: str) -> float:
    """A share from 0 to 1, for argparse."""
    number = float(text)
    if not 0 <= number <= 1:
        msg = f"{text} is not between 0 and 1"
        raise argparse.ArgumentTypeError(msg)
    return number


def main() -> None:
    """The command; prints the summary as JSON (to standard error, when the file goes to standard output)."""
    parser = argparse.ArgumentParser(prog="python -m bench.generate", description="A CSV file for webhook_events.")
    parser.add_argument("--rows", type=positive, required=True, help="rows, without the header")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--invalid", type=share, default=0.0, metavar="SHARE", help="share of invalid rows, 0 to 1")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="- for standard output")
    options = parser.parse_args()
    if options.output == "-":
        summary = write(sys.stdout.buffer, options.rows, seed=options.seed, invalid=options.invalid)
        sys.stdout.buffer.flush()
        print(json.dumps(asdict(summary)), file=sys.stderr)
        return
    with Path(options.output).open("wb") as file:
        summary = write(file, options.rows, seed=options.seed, invalid=options.invalid)
    print(json.dumps(asdict(summary)))


if __name__ == "__main__":
    main()
