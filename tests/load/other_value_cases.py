"""Types without a binary form of ours: every value of them is put to Postgres, in the words of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hypothesis import strategies as st

from tests.load.value_cases import Case

#: What the types below are made of.
TYPES: Final = """
CREATE EXTENSION citext;
CREATE EXTENSION hstore;
CREATE DOMAIN nothing_less AS int NOT NULL;
CREATE DOMAIN above_all AS nothing_less CHECK (VALUE < 100);
CREATE DOMAIN short_text AS varchar(3);
CREATE DOMAIN few AS int[] CHECK (array_length(VALUE, 1) < 3);
CREATE DOMAIN feeling AS mood CHECK (VALUE <> 'sad');
CREATE TYPE pair AS (a int, "B c" varchar(3));
"""


def _case(name: str, good: Sequence[str], bad: Sequence[str] = (), alphabet: str = "") -> Case:
    """Values near those that are given, which are Postgres' own examples for the most part."""
    letters = alphabet or "".join(sorted(set("".join(good)))) + ' ",'
    return Case(name, st.sampled_from(good), letters, [*good, *bad, "", " ", "NULL", "\\N"], binary=False)


_RANGE: Final = ["empty", "[{a},{b})", "({a},{b}]", "[{a},]", "(,{b})", "(,)", "[{a},{a}]", " [ {a} , {b} ) "]


def _ranges(name: str, a: str, b: str) -> Case:
    good = [each.format(a=a, b=b) for each in _RANGE]
    return _case(name, good, [f"[{b},{a}]", f"[{a}", a, "[,", f"({a},{b}) x", f'["{a}","{b}"]', "[,,]"])


def _multiranges(name: str, a: str, b: str) -> Case:
    good = ["{}", f"{{[{a},{b})}}", f"{{[{a},{a}], ({b},)}}", f"{{({a},{b}),({a},{b})}}"]
    return _case(name, good, [f"[{a},{b})", "{,}", f"{{[{b},{a}]}}"])


_INTERVALS: Final = [
    "1 day",
    "-1 day +02:03:04.567",
    "1 year 2 mons 3 days 04:05:06.789012",
    "P1Y2M3DT4H5M6.5S",
    "P0001-02-03T04:05:06",
    "1-2",
    "@ 3 hours ago",
    "10:11",
    "1.5 weeks",
    "178000000 years",
    "infinity",
    "-infinity",
]
_TIMETZ: Final = ["10:00:00+02", "10:00 PM -3:30", "24:00:00Z", "00:00:00.123456+15:59", "10:11:12 UTC", "101112+0530"]
_IPS: Final = ["10.0.0.1", "10.0.0.0/8", "::1", "::ffff:1.2.3.4/128", "2001:db8::/32", "192.168.0.1/24", "10.1"]

OTHER_CASES: Final = [
    _case(
        "money", ["$1,000.50", "-1.5", "($3.00)", "92233720368547758.07", "1e3", ".5"], ["92233720368547758.08", "$"]
    ),
    _case("oid", ["0", "4294967295", "-1", " 7 "], ["4294967296", "-2147483649"]),
    _case('"char"', ["a", "ab", "\\101", "é", "\\"], alphabet="a\\01é "),
    _case("name", ["a" * 63, "a" * 64, "é" * 40, "\\."]),
    _case("citext", ["Abc", "aBC", "\\.", "é"]),
    _case("hstore", ['"a"=>"b"', "a=>1, b=>NULL", 'a=>"x\\"y"', "a=>b,a=>c"], ["a", "a=>", "=>b", "a=>b c"]),
    _case("bit(5)", ["10101", "B00000", "x1", "b11111"], ["1010", "101010", "12345"], alphabet="01xXbB2a "),
    _case("bit varying(5)", ["1", "10101", "xF", ""], ["101010", "2", "xFF"], alphabet="01xXbBfF2 "),
    _case("bit varying", ["", "1" * 70, "xDEADBEEF"], ["b2"], alphabet="01xXbBfF2 "),
    _case("macaddr", ["08:00:2b:01:02:03", "08-00-2B-01-02-03", "08002b:010203", "0800.2b01.0203", "08002b010203"]),
    _case("macaddr8", ["08:00:2b:01:02:03:04:05", "08002b0102030405", "08:00:2b:01:02:03"]),
    _case("cidr", _IPS, ["192.168.0.1/24/1", "1.2.3.4/33", "::1/129"]),
    _case("inet", _IPS, ["1.2.3.4/33", "1.2.3.256", "::1/129", "1.2.3.4/ 8"]),
    _case("interval", _INTERVALS, ["1 moon", "P1", "200000000 years", "1-13"]),
    _case("interval(2)", _INTERVALS),
    _case("interval year to month", _INTERVALS),
    _case("interval day to second(3)", _INTERVALS),
    _case(
        "timetz", _TIMETZ, ["10:00:00+16:00", "25:00Z", "10:00:00 Europe/Berlin", "2026-07-01 10:00:00 Europe/Berlin"]
    ),
    _case("timetz(1)", _TIMETZ),
    _case("bytea", ["\\x00ff", "\\xFF 00", "abc", "\\\\", "\\000\\377", "\\x"], ["\\xf", "\\400", "\\x0g", "\\"]),
    _case(
        "int2[]",
        ["{1,2}", "{}", "[0:1]={1,2}", "{{1},{2}}", "{ 1 , NULL }", '{"1"}'],
        ["{1", "{40000}", "{{1},{2,3}}", "{1,}"],
    ),
    _case("bigint[]", ["{9223372036854775807}", "{-1,null}", "[-1:-1]={5}"], ["{9223372036854775808}", "[1:2]={1}"]),
    _case(
        "text[]",
        ['{a,"b c",NULL,"NULL"}', '{"x\\"y","\\\\"}', '{"",{}}', "{é}", '{"a\nb"}', "{a b}"],
        ['{"a', "{a}}", '{a"b}'],
    ),
    _case("varchar(3)[]", ["{abc,d}", '{"abc  "}'], ["{abcd}"]),
    _case("numeric(5,2)[]", ["{1.005,NaN,-0}", "{1e2}"], ["{1000}", "{x}"]),
    _case("uuid[]", ["{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}", "{a0eebc999c0b4ef8bb6d6bb9bd380a11,NULL}"], ["{a}"]),
    _case("boolean[]", ["{t,f,yes,off,1}", "{TRUE,n}"], ["{2}"]),
    _case("timestamptz[]", ['{"2026-11-23 10:00:00+02","infinity"}', "{2026-11-23}"], ["{2026-02-30}"]),
    _case("date[]", ["{2026-11-23,infinity}", "{J2451187}"], ["{2026-02-30}", "{x}"]),
    _case("jsonb[]", ['{"{\\"a\\": 1}","null",NULL}', "{1}"], ['{"{"}', '{"\\"\\\\u0000\\""}']),
    _case("mood[]", ["{sad,ok}", '{"it\'s","a \\"b\\""}', "{NULL}"], ["{Sad}", "{x}"]),
    _case("positive[]", ["{1,2.5}", "{NULL}"], ["{0}", "{-1,1}"]),
    _case("nothing_less", ["1", "-7", " 3 "], ["x", "2147483648"]),
    _case("above_all", ["1", "99"], ["100", "x"]),
    _case("short_text", ["abc", "abc  ", "é"], ["abcd"]),
    _case("few", ["{1,2}", "{}", "{{1,2,3}}"], ["{1,2,3}", "{x}"]),
    _case("feeling", ["ok", "it's"], ["sad", "Ok"]),
    _case("pair", ["(1,abc)", '(,"")', '(7,"a""b")', "(1,)"], ["(1)", "(1,abcd)", "(x,a)", "(1,a,b)", "1,a"]),
    _case("pair[]", ['{"(1,abc)","(,)"}', "{NULL}"], ['{"(1,abcd)"}', "{(1)}"]),
    _ranges("int4range", "1", "5"),
    _ranges("int8range", "-9223372036854775808", "9223372036854775807"),
    _ranges("numrange", "-1.50", "NaN"),
    _ranges("daterange", "2026-01-01", "infinity"),
    _ranges("tsrange", '"2026-01-01 10:00"', "infinity"),
    _ranges("tstzrange", '"2026-01-01 10:00+02"', '"2026-01-01 10:00+01"'),
    _multiranges("int4multirange", "1", "5"),
    _multiranges("nummultirange", "1.0", "1.50"),
    _multiranges("datemultirange", "2026-01-01", "2026-02-01"),
    _case("tsvector", ["a fat cat", "a:1A fat:2,3B 'it''s':4", "a\\:b", ""], ["a:x", "'a", "a:0"]),
    _case("tsquery", ["fat & cat", "a:AB* | !b", "'it''s' <-> x", "(a & b)"], ["a b", "a &", "(a", "!"]),
    _case("jsonpath", ["$.a[*] ? (@ > 1)", "strict $", "$[0 to last]"], ["$.", "x", "$[", '$ ? (@ like_regex "[")']),
    _case("point", ["(1,2)", "1.5,-2e3", "( 1 , NaN )", "(Infinity,0)"], ["(1)", "1,2,3", "(1,x)"]),
    _case("line", ["{1,2,3}", "[(0,0),(1,1)]"], ["{0,0,1}", "[(0,0),(0,0)]", "{1,2}"]),
    _case("lseg", ["[(0,0),(1,1)]", "((0,0),(1,1))", "0,0,1,1"], ["[(0,0)]"]),
    _case("box", ["(0,0),(1,1)", "((1,1),(0,0))"], ["(0,0)"]),
    _case("path", ["[(0,0),(1,1),(2,0)]", "((0,0),(1,1))", "0,0,1,1"], ["[]", "[(0,0)"]),
    _case("polygon", ["((0,0),(1,1),(2,0))", "0,0,1,1"], ["(1)", "(0,0,1)"]),
    _case("circle", ["<(0,0),1>", "((0,0),1)", "0,0,1"], ["<(0,0),-1>", "<(0,0)>"]),
    _case("pg_lsn", ["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"], ["1/", "x/0", "1/100000000"]),
    _case("regclass", ["got", "pg_catalog.pg_class", "-", "0"], ["nothing", "1.2.3.4", "a.b"]),
]
