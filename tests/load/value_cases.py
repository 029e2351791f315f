"""The types whose values the validator is tried on, and how to make values that are valid, nearly so, or neither."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

_ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_DIGITS = st.text("0123456789", min_size=1, max_size=22)


@dataclass(frozen=True)
class Case:
    """A type, values that are valid or nearly so, and the characters that mutations bring in."""

    type: str
    valid: st.SearchStrategy[str]
    alphabet: str
    examples: Sequence[str] = ()
    binary: bool = True

    def values(self) -> st.SearchStrategy[str]:
        near = st.builds(_mutate, self.valid, st.lists(_mutations(self.alphabet), min_size=1, max_size=2))
        some = [self.valid, self.valid, near, near, st.text(self.alphabet, max_size=10), _ANY_TEXT]
        if self.examples:
            some.append(st.sampled_from(self.examples))
        return st.one_of(some)


@dataclass(frozen=True)
class _Mutation:
    kind: str
    place: int
    text: str


def _mutations(alphabet: str) -> st.SearchStrategy[_Mutation]:
    return st.builds(
        _Mutation,
        st.sampled_from(["insert", "replace", "drop", "double", "front", "back"]),
        st.integers(0, 40),
        st.sampled_from(alphabet),
    )


def _mutate(value: str, mutations: list[_Mutation]) -> str:
    for m in mutations:
        at = m.place % (len(value) + 1)
        match m.kind:
            case "insert":
                value = value[:at] + m.text + value[at:]
            case "replace":
                value = value[:at] + m.text + value[at + 1 :]
            case "drop":
                value = value[:at] + value[at + 1 :]
            case "double":
                value = value[:at] + value[at : at + 1] + value[at:]
            case "front":
                value = m.text + value
            case _:
                value += m.text
    return value


def _decimals(whole: int, fraction: int) -> st.SearchStrategy[str]:
    return st.builds(
        lambda sign, a, b: f"{sign}{a}.{b}" if b else f"{sign}{a}",
        st.sampled_from(["", "", "-"]),
        st.text("0123456789", min_size=1, max_size=max(1, whole)),
        st.text("0123456789", max_size=fraction + 1),
    )


def _integers(bits: int) -> st.SearchStrategy[str]:
    edge = 2 ** (bits - 1)
    near_edges = st.one_of(st.integers(-edge - 2, -edge + 2), st.integers(edge - 2, edge + 2))
    return st.one_of(st.integers(-edge, edge - 1), near_edges, st.integers(-200, 200)).map(str)


_DATES = st.builds(
    lambda y, m, d: f"{y:04}-{m:02}-{d:02}",
    st.one_of(st.integers(1895, 3005), st.sampled_from([1900, 2000, 2024, 2100, 2400, 2999, 1, 9999])),
    st.integers(0, 13),
    st.one_of(st.integers(0, 32), st.sampled_from([28, 29, 30, 31])),
)
_TIMES = st.builds(
    lambda h, m, s, f: f"{h:02}:{m:02}" + (f":{s:02}{f}" if s >= 0 else ""),
    st.integers(0, 24),
    st.integers(0, 60),
    st.integers(-1, 60),
    st.one_of(st.just(""), st.text("0123456789", max_size=9).map(".{}".format)),
)
_ZONES = st.one_of(
    st.sampled_from(
        ["Z", "+00", "+00:00", "+0530", "-03:30", "+15:59", "+16:00", "-15:59", "z", " UTC", "+5", "+23:59"]
    ),
    st.builds(
        lambda s, h, c, m: f"{s}{h:02}{c}{m:02}",
        st.sampled_from("+-"),
        st.integers(0, 16),
        st.sampled_from([":", ""]),
        st.integers(0, 60),
    ),
)
_STAMPS = st.builds("{}{}{}{}".format, _DATES, st.sampled_from(" TT"), _TIMES, st.one_of(st.just(""), _ZONES))
_STAMP_EXAMPLES = [
    "infinity",
    "-infinity",
    "epoch",
    "2026-11-23",
    "20261123",
    "2026-11-23T10Z",
    "today",
    "",
    "2026-11-23T10:00:00+23:59",
    "2026-11-23T24:00:00Z",
    "2026-11-23T23:59:60Z",
    "2026-11-23 10:00:00 +02",
    "2026-11-23t10:00:00z",
    "2026-11-23T10:00:00.1234567Z",
    "2026-11-23T10:00:00.123456789Z",
    "11/23/2026",
]

_JSON_TEXTS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)
_JSON = st.builds(
    lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent),
    _JSON_TEXTS,
    st.booleans(),
    st.sampled_from([None, None, 1]),
).filter(lambda text: "\0" not in text)
_JSON_EXAMPLES = [
    r'"\u0000"',
    r'{"a": "\u0000"}',
    r'"\\u0000"',
    r'"\ud800"',
    r'"\ud83d\ude00"',
    r'"\ude00\ud83d"',
    r'"\ud83dx"',
    "1e200000",
    "1e-20000",
    "1e131071",
    "1e131072",
    "-1e99999",
    "[1e9999]",
    "9" * 2000,
    "0." + "1" * 17000,
    '{"a":1,"a":2}',
    "NaN",
    "01",
    "[1,]",
    '"a\tb"',
    '"a\nb"',
    " [ ] ",
    "\ufeff1",
    '"\x7f"',
    "",
    " ",
    "[" * 3000 + "]" * 3000,
    "[" * 900 + "]" * 900,
    "1.0e+5",
    "[" * 50000,
    r'"\q"',
    r'"\u00"',
    "truefalse",
    "1 2",
    '"\\/"',
    '{"\\u0000": 1}',
    "1E0001",
    "-0",
    "-0.00",
    "1e-16383",
    "1e-16384",
]
_JSON_ALPHABET = '{}[]",:\\u0123456789eE+-. \t\nabdtrufalsn/\x01'

_NUMBER_EXAMPLES = [
    "1.234",
    "1.235",
    " 5",
    "5 ",
    "NaN",
    "0x10",
    "1_000",
    "+1",
    "1e5",
    "1E-3",
    "infinity",
    "-Infinity",
    ".5",
    "5.",
    "-.5",
    "-",
    "",
    " ",
    "9999999999.99",
    "9999999999.995",
    "10000000000",
    "-0.00",
    "0b1",
    "0o7",
    "1__0",
    "1e400",
    "1e-400",
    "4e-46",
    "1e-45",
    "3.5e38",
    "inf",
    "00012.50",
    "\u0661",
    "1e131072",
    "1e-16384",
]
_NUMBERS = "0123456789-+.eE_x \tNaIinf"
_FLOATS = st.one_of(
    st.floats(allow_nan=False).map(repr),
    st.floats(width=32).map(str),
    _decimals(18, 18),
    st.builds("{}e{}".format, _decimals(17, 17), st.integers(-400, 400)),
)

_HEX = "0123456789abcdefABCDEF"
_UUIDS = st.one_of(st.uuids().map(str), st.uuids().map(lambda u: str(u).upper()))
_UUID_EXAMPLES = [
    "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
    "a0eebc999c0b4ef8bb6d6bb9bd380a11",
    "not-a-uuid",
    "",
    "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
    "a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11",
    "\uff41" * 12,
]
_WORDS = st.sampled_from(
    [
        "t",
        "true",
        "f",
        "false",
        "yes",
        "no",
        "on",
        "off",
        "1",
        "0",
        "y",
        "n",
        "T",
        "TRUE",
        "False",
        "oN",
        "of",
        "o",
        "tr",
        " true",
        "yes ",
        "2",
        "nope",
        "TruE",
    ]
)

CASES = [
    Case("uuid", _UUIDS, _HEX + "-{} g", _UUID_EXAMPLES),
    Case("smallint", _integers(16), _NUMBERS, _NUMBER_EXAMPLES),
    Case("integer", _integers(32), _NUMBERS, _NUMBER_EXAMPLES),
    Case("bigint", _integers(64), _NUMBERS, _NUMBER_EXAMPLES),
    Case("numeric(12,2)", _decimals(10, 2), _NUMBERS, _NUMBER_EXAMPLES),
    Case("numeric(4,4)", _decimals(1, 4), _NUMBERS, _NUMBER_EXAMPLES),
    Case("numeric(5,0)", _decimals(5, 0), _NUMBERS, _NUMBER_EXAMPLES),
    Case("numeric(38,10)", _decimals(28, 10), _NUMBERS, _NUMBER_EXAMPLES),
    Case("numeric(38,38)", _decimals(1, 38), _NUMBERS, _NUMBER_EXAMPLES),
    Case("numeric(3,-2)", _decimals(6, 1), _NUMBERS, _NUMBER_EXAMPLES, binary=False),
    Case("numeric(60,5)", _decimals(55, 5), _NUMBERS, _NUMBER_EXAMPLES, binary=False),
    Case(
        "numeric",
        _decimals(30, 30),
        _NUMBERS,
        [*_NUMBER_EXAMPLES, "1" * 1001, "0." + "1" * 16383, "0." + "1" * 16384],
        binary=False,
    ),
    Case("real", _FLOATS, _NUMBERS, _NUMBER_EXAMPLES),
    Case("double precision", _FLOATS, _NUMBERS, _NUMBER_EXAMPLES),
    Case("boolean", _WORDS, "tTrueyesnofFalse01 ", [""]),
    Case(
        "date",
        _DATES,
        "0123456789-/ BC",
        ["2026-1-3", "20261123", "infinity", "11/23/2026", "2026-02-30", "", "J2451187"],
    ),
    Case("time", _TIMES, "0123456789:. apmZ+", ["24:00:00", "10:00 PM", "101112", "23:59:59.9999999", "allballs", ""]),
    Case("time(3)", _TIMES, "0123456789:. apmZ+", ["23:59:59.9999", "10:00:00.0005"]),
    Case("timetz", _TIMES, "0123456789:. apmZ+", ["10:00:00Z", "10:00:00+02"], binary=False),
    Case("timestamp", _STAMPS, "0123456789-:. TZz+", _STAMP_EXAMPLES),
    Case("timestamp(2)", _STAMPS, "0123456789-:. TZz+", _STAMP_EXAMPLES),
    Case("timestamptz", _STAMPS, "0123456789-:. TZz+", _STAMP_EXAMPLES),
    Case("timestamptz(0)", _STAMPS, "0123456789-:. TZz+", _STAMP_EXAMPLES),
    Case(
        "text",
        _ANY_TEXT,
        "a\"',;\\.\r\n\t é",
        ["", "\\.", "\\N", "NULL", '"', '""', "\n", "\r\n", "\\.\n\\.", "\ufeff", "a\\.\n"],
    ),
    Case("varchar(5)", _ANY_TEXT, "abcdé🎉 ", ["abcde   ", "abcdef", "ééééé", "🎉🎉🎉🎉🎉", "", "     \t"]),
    Case("varchar", _ANY_TEXT, "abcdé ", [""]),
    Case("char(3)", _ANY_TEXT, "abé ", ["abc   ", "a", "", "éééé", "   "]),
    Case("bpchar", _ANY_TEXT, "abé ", ["a  ", ""]),
    Case("mood", st.sampled_from(["sad", "ok", "it's", 'a "b"', "ünïcode"]), "sadok ", ["Sad", " ok", "", "happy"]),
    Case("json", _JSON, _JSON_ALPHABET, _JSON_EXAMPLES),
    Case("jsonb", _JSON, _JSON_ALPHABET, _JSON_EXAMPLES),
    Case(
        "bytea",
        st.binary(max_size=6).map(lambda b: "\\x" + b.hex()),
        "\\x0123abz",
        ["abc", "\\001", "\\x1", "\\x 1", ""],
        binary=False,
    ),
    Case(
        "integer[]",
        st.lists(st.integers(-5, 5), max_size=3).map(lambda v: "{" + ",".join(map(str, v)) + "}"),
        "{},1NUL ",
        [""],
        binary=False,
    ),
    Case(
        "interval",
        st.builds("{} days 00:00:0{}".format, _DIGITS, st.integers(0, 9)),
        "0123 dayshourPT1H:",
        ["P1D", "1-2", ""],
        binary=False,
    ),
    Case("inet", st.ip_addresses().map(str), "0123456789./:abc", ["10.0.0.0/8", "1.2.3"], binary=False),
    Case("positive", _integers(16), _NUMBERS, ["0", "-1"], binary=False),
    Case("shout", _ANY_TEXT, "aAbB ", ["THROW", "", "LOUD", "quiet"], binary=False),
]
