"""Headers, and files that have none."""

from __future__ import annotations

from typing import Final

from tests.nasty.case import Nasty

FILES: Final = [
    Nasty("in another order", b"b,a\nx,y\n", [("y", "x")], table="a varchar, b text"),
    Nasty("in capitals, with spaces", b" A ,\tB\nx,y\n", [("x", "y")]),
    Nasty(
        "in quotes, with line ends",
        b'"a\r\n1",b\nx\n',
        [],
        [(3, 9, "wrong_field_count")],
        table='"a\r\n1" text, b text',
    ),
    Nasty("names that differ in case only", b"A,a\nx,y\n", [("x", "y")], table='"A" text, a text'),
    Nasty("names of other letters", 'größe,"it\'s"\nx,y\n'.encode(), [("x", "y")], table='"Größe" text, "it\'s" text'),
    Nasty("a column that is not in the file", b"b\nx\n", [("d", "x")], table="a text DEFAULT 'd', b text"),
    Nasty("a column that must be", b"b\nx\n", fails="header_mismatch", table="a text NOT NULL, b text"),
    Nasty("a column that nobody knows", b"a,b,c\nx,y,z\n", fails="header_mismatch"),
    Nasty("a column twice", b"a,b,A\nx,y,z\n", fails="header_mismatch"),
    Nasty("a column without a name", b"a,b,\nx,y,z\n", fails="header_mismatch"),
    Nasty(
        "a column that the table computes",
        b"a,b\n1,2\n",
        fails="header_mismatch",
        table="a int, b int GENERATED ALWAYS AS (a * 2) STORED",
    ),
    Nasty(
        "a column that counts by itself",
        b"b\nx\ny\n",
        [("1", "x"), ("2", "y")],
        table="a int GENERATED ALWAYS AS IDENTITY, b text",
        lanes=1,
    ),
    Nasty("none, and the first row taken for it", b"x,y\nz,w\n", fails="header_mismatch"),
    Nasty("none, in an empty file", b"", fails="header_mismatch"),
    Nasty("none, in blank lines", b"\n\r\n\n", fails="header_mismatch"),
    Nasty("an open quote", b'a,"b\nx,y\n', fails="header_unreadable"),
    Nasty("a quote closed wrongly", b'a,"b\nx"y,z\n', fails="header_unreadable"),
    Nasty(
        "longer than the limit",
        b"a,b" + b" " * 20 + b"\nx,y\n",
        fails="header_too_long",
        limits={"max_header_bytes": 16},
    ),
    Nasty("more columns than the limit", b"a,b,c\n", fails="too_many_columns", limits={"max_columns": 2}),
    Nasty("a NUL in a name", b"a,b\0\nx,y\n", fails="header_mismatch"),
    Nasty("no text", b"a,b\xff\nx,y\n", fails="encoding_unsupported"),
    Nasty("a spreadsheet", b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0", fails="encoding_unsupported"),
    Nasty("JSON", b'[{"a": "x",\n "b": "y"}]\n', fails="header_mismatch"),
]
