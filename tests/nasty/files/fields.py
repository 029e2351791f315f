"""Numbers of fields, nulls, and records that are too long."""

from __future__ import annotations

from typing import Final

from tests.nasty.case import Nasty

FILES: Final = [
    Nasty(
        "too few and too many",
        b"a,b\nx\nx,y\nx,y,z\nx,y,\n",
        [("x", "y")],
        [(2, 4, "wrong_field_count"), (4, 10, "wrong_field_count"), (5, 16, "wrong_field_count")],
    ),
    Nasty("nothing but delimiters", b"a,b\n,\n,,\n", [(None, None)], [(3, 6, "wrong_field_count")]),
    Nasty(
        "very many",
        b"a,b\n" + b"," * 5000 + b"\nx,y\n",
        [("x", "y")],
        [(2, 4, "wrong_field_count")],
    ),
    Nasty(
        "words for null are words",
        b'a,b\n\\N,NULL\nnull,"NULL"\nN/A,-\n',
        [("\\N", "NULL"), ("null", "NULL"), ("N/A", "-")],
    ),
    Nasty("white space stays", b'a,b\n x ,\ty\t\n" ", \n', [(" x ", "\ty\t"), (" ", " ")]),
    Nasty(
        "the end of the data of COPY",
        b'a,b\n\\.,x\n"\\.",\\.\n\\.\n',
        [("\\.", "x"), ("\\.", "\\.")],
        [(4, 17, "wrong_field_count")],
    ),
    Nasty(
        "formulas and markup are text",
        b'a,b\n=1+1,@x\n"<b>","\';DROP TABLE webhook_events;--"\n%s,$1 {}\n',
        [("=1+1", "@x"), ("<b>", "';DROP TABLE webhook_events;--"), ("%s", "$1 {}")],
    ),
    Nasty(
        "a line over the limit",
        b"a,b\nx,y\n1234567,9012345678\nz,w\n",
        [("x", "y"), ("z", "w")],
        [(3, 8, "record_too_long")],
        limits={"max_record_bytes": 16},
    ),
    Nasty(
        "a line as long as may be, and one byte more",
        b"a,b\n1234567,9012345\n1234567,90123456\nx,y",
        [("1234567", "9012345"), ("x", "y")],
        [(3, 20, "record_too_long")],
        limits={"max_record_bytes": 16},
    ),
    Nasty(
        "the last line over the limit, without an end",
        b"a,b\nx,y\n1234567,90123456789",
        [("x", "y")],
        [(3, 8, "record_too_long")],
        limits={"max_record_bytes": 16},
    ),
    Nasty(
        "a line over the limit by its line end",
        b"a,b\r\n1234567,901234\r\n1234567,9012345\r\nx,y\r\n",
        [("1234567", "901234"), ("x", "y")],
        [(3, 21, "record_too_long")],
        limits={"max_record_bytes": 16},
    ),
    Nasty(
        "a line much longer than the limit",
        b"a,b\n" + b'"x,' * 500 + b"\nx,y\n",
        [("x", "y")],
        [(2, 4, "record_too_long")],
        limits={"max_record_bytes": 16},
    ),
    Nasty(
        "a record of several lines over the limit",
        b'a,b\n"x\nyyyyyyyyyyyy\nz",w\np,q\n',
        [('z"', "w"), ("p", "q")],
        [(2, 4, "unclosed_quote"), (3, 7, "wrong_field_count")],
        limits={"max_record_bytes": 16},
    ),
    Nasty(
        "a record of several lines as long as may be",
        b'a,b\n"x\nyyyyyyyyy\nz"\np,q\n',
        [("p", "q")],
        [(2, 4, "wrong_field_count")],
        limits={"max_record_bytes": 16},
    ),
    Nasty(
        "UTF-16 over the limit",
        b"\xff\xfe" + "a,b\n12,45\n123,5678\nx,y\n".encode("utf-16-le"),
        [("12", "45"), ("x", "y")],
        [(3, 22, "record_too_long")],
        limits={"max_record_bytes": 16},
    ),
    Nasty(
        "values over the limit",
        'a,b\nxyz,\nx,wxyz\n12345,""\né,€\né,éé\n'.encode(),
        [("xyz", None), ("é", "€")],
        [(3, 9, "value_too_long"), (4, 16, "value_too_long"), (6, 32, "value_too_long")],
        limits={"max_value_bytes": 3},
    ),
]
