"""Values that are what they should be, nearly so, or not at all; and what only the table knows.

Rows show what Postgres stores, in its own words. Line 1 is the header; its bytes are counted.
"""

from __future__ import annotations

from typing import Final

from tests.nasty.case import Nasty

FILES: Final = [
    Nasty(
        "whole numbers",
        b"a,b\n+1, 2 \n0x1F,1_000\n-32768,-9223372036854775808\n4.0,1\n1,1e3\n32768,1\n1,9223372036854775808\n,0b11\n",
        [("1", "2"), ("31", "1000"), ("-32768", "-9223372036854775808"), (None, "3")],
        [
            (5, 50, "invalid_number"),
            (6, 56, "invalid_number"),
            (7, 62, "number_out_of_range"),
            (8, 70, "number_out_of_range"),
        ],
        table="a smallint, b bigint",
    ),
    Nasty(
        "decimals",
        b'a,b\n1.005,1.50\n-0.00,.5\nNaN,1e2\n999.995,1\n1,"1,5"\n999.994,5.\n1,-\n',
        [("1.01", "1.50"), ("0.00", "0.5"), ("NaN", "100"), ("999.99", "5")],
        [(5, 32, "number_out_of_range"), (6, 42, "invalid_number"), (8, 61, "invalid_number")],
        table="a numeric(5,2), b numeric",
    ),
    Nasty(
        "floats",
        b"a,b\n1e400,1\n0.1,1e39\n0.1,0.1\ninfinity,-inf\n1e-400,1\n",
        [("0.1", "0.1"), ("Infinity", "-Infinity")],
        [(2, 4, "number_out_of_range"), (3, 12, "number_out_of_range"), (6, 43, "number_out_of_range")],
        table="a float8, b float4",
    ),
    Nasty(
        "truth",
        b"a,b\nyes,off\n T ,0\n2,t\ntru,n\nvrai,t\n",
        [("true", "false"), ("true", "false"), ("true", "false")],
        [(4, 18, "invalid_boolean"), (6, 28, "invalid_boolean")],
        table="a boolean, b boolean",
    ),
    Nasty(
        "days",
        b"a,b\n2024-02-29,1\n2023-02-29,2\n20240101,3\n11/23/2026,4\n23/11/2026,5\ninfinity,6\nsoon,7\n2026-1-3,8\n",
        [("2024-02-29", "1"), ("2024-01-01", "3"), ("2026-11-23", "4"), ("infinity", "6"), ("2026-01-03", "8")],
        [(3, 17, "date_out_of_range"), (6, 54, "date_out_of_range"), (8, 78, "invalid_date")],
        table="a date, b int",
    ),
    Nasty(
        "moments",
        b"a,b\n2026-11-23T10:00:00Z,1\n2026-11-23 10:00+02,2\n2026-11-23,3\n2026-11-23T24:00:00Z,4\n"
        b"2026-11-23T10:00:00+23:59,5\n2026-11-23T25:00:00Z,6\n",
        [
            ("2026-11-23 10:00:00+00", "1"),
            ("2026-11-23 08:00:00+00", "2"),
            ("2026-11-23 00:00:00+00", "3"),
            ("2026-11-24 00:00:00+00", "4"),
        ],
        [(6, 85, "invalid_date"), (7, 113, "date_out_of_range")],
        table="a timestamptz, b int",
    ),
    Nasty(
        "texts that are too long",
        "a,b\nabcd,1\nabc  ,2\nééé,x\n😀😀😀,\nabc,xyz\n".encode(),
        [("abc", "2"), ("ééé", "x"), ("😀😀😀", None)],
        [(2, 4, "too_long"), (6, 42, "too_long")],
        table="a varchar(3), b char(2)",
    ),
    Nasty(
        "identifiers",
        b"a,b\n{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11},x\na0eebc999c0b4ef8bb6d6bb9bd380a11,y\nnone,z\n",
        [("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "x"), ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "y")],
        [(4, 80, "invalid_uuid")],
        table="a uuid, b text",
    ),
    Nasty(
        "documents",
        b'a,b\n"{""x"": [1, 2]}","{""y"" :1,""y"":2}"\n"""\\u0000""",1\n1,"""\\u0000"""\n{x},1\n1,01\n1e5,\n"","1"\n',
        [('{"x": [1, 2]}', '{"y": 2}'), ('"\\u0000"', "1"), ("1e5", None)],
        [(4, 58, "invalid_json"), (5, 73, "invalid_json"), (6, 79, "invalid_json"), (8, 89, "invalid_json")],
        table="a json, b jsonb",
    ),
    Nasty(
        "labels, and domains with a rule",
        b"a,b\nsad,1\nSad,1\nit's,99\nsad,0\nsad,\n,7\n",
        [("sad", "1"), ("it's", "99"), (None, "7")],
        [(3, 10, "invalid_value"), (5, 24, "invalid_value"), (6, 30, "missing_value")],
        table="a mood, b percent",
        before="CREATE TYPE mood AS ENUM ('sad', 'it''s'); CREATE DOMAIN percent AS int NOT NULL CHECK (VALUE > 0)",
    ),
    Nasty(
        "arrays and ranges",
        b'a,b\n"{1,2}","[1,5)"\n{},empty\n"{1,x}","[1,2)"\n"{{1},{2}}","[5,1)"\n"{1, NULL}","(,3]"\n{1,[]\n',
        [("{1,2}", "[1,5)"), ("{}", "empty"), ("{1,NULL}", "(,4)")],
        [(4, 29, "invalid_value"), (5, 45, "invalid_value"), (7, 84, "invalid_value")],
        table="a int[], b int4range",
    ),
    Nasty(
        "bytes, addresses and spans",
        b"a,b,c\n\\x00ff,10.0.0.1,1 day\n\\xf,10.0.0.1,1 day\nabc,::1/64,P1DT2H\n"
        b"x,10.0.0.256,1 day\nx,10.0.0.1,1 moon\n",
        [("\\x00ff", "10.0.0.1/32", "1 day"), ("\\x616263", "::1/64", "1 day 02:00:00")],
        [(3, 28, "invalid_value"), (5, 65, "invalid_value"), (6, 84, "invalid_value")],
        table="a bytea, b inet, c interval",
    ),
    Nasty(
        "nothing where something must be",
        b'a,b\n,1\nx,\n"",2\n,\n',
        [("", "2")],
        [(2, 4, "missing_value"), (3, 7, "missing_value"), (5, 15, "missing_value")],
        table="a text NOT NULL, b int NOT NULL",
    ),
    Nasty(
        "nothing in quotes is no number",
        b'a,b\n"",1\n1,""\n,\n',
        [(None, None)],
        [(2, 4, "invalid_number"), (3, 9, "invalid_number")],
        table="a int, b numeric",
    ),
    Nasty(
        "keys that come again",
        b"a,b\n1,x\n2,y\n01,z\n3,\n2,w\n",
        [("1", "x"), ("2", "y"), ("3", None)],
        [(4, 12, "duplicate_key"), (6, 20, "duplicate_key")],
        table="a int PRIMARY KEY, b text",
        lanes=1,
    ),
    Nasty(
        "a rule of the table",
        b"a,b\n1,2\n2,1\nx,1\n3,3\n",
        [("1", "2")],
        [(3, 8, "check_violated"), (4, 12, "invalid_number"), (5, 16, "check_violated")],
        table="a int, b int, CHECK (a < b)",
    ),
    Nasty(
        "rows that two rules refuse, and one that is bad as well",
        b'a,b\n1,1\n1,2\n"x,3\n5,1\n,9\n',
        [("1", "1"), (None, "9")],
        [(3, 8, "duplicate_key"), (4, 12, "unclosed_quote"), (5, 17, "duplicate_key")],
        table="a int UNIQUE, b int UNIQUE",
        lanes=1,
    ),
    Nasty(
        "a value in the wrong column",
        b"a,b\nx,1\n1,x\nx,x\n",
        [("1", "x")],
        [(2, 4, "invalid_number"), (4, 12, "invalid_number")],
        table="a int, b text",
    ),
]
