"""Line ends, blank lines, and what only looks like one or the other."""

from __future__ import annotations

from typing import Final

from tests.nasty.case import Nasty

FILES: Final = [
    Nasty("crlf", b"a,b\r\nx,y\r\nz\r\n", [("x", "y")], [(3, 10, "wrong_field_count")]),
    Nasty("cr alone", b"a,b\rx,y\rz\rp,q\r", [("x", "y"), ("p", "q")], [(3, 8, "wrong_field_count")]),
    Nasty(
        "all three",
        b"a,b\nx,y\r\nz,w\rp,q\nr\n",
        [("x", "y"), ("z", "w"), ("p", "q")],
        [(5, 17, "wrong_field_count")],
    ),
    Nasty("none at the end", b"a,b\nx,y\nz,w", [("x", "y"), ("z", "w")]),
    Nasty("none at the end, bad", b"a,b\nx,y\nz", [("x", "y")], [(3, 8, "wrong_field_count")]),
    Nasty("a cr at the end", b"a,b\nx,y\r", [("x", "y")]),
    # The CR is a line of its own.
    Nasty("lf cr", b"a,b\n\rx,y\n\rz\n", [("x", "y")], [(5, 10, "wrong_field_count")]),
    Nasty("cr cr lf", b"a,b\r\r\nx,y\r\r\nz\r\r\n", [("x", "y")], [(5, 12, "wrong_field_count")]),
    Nasty("cr in quotes counts as a line", b'a,b\n"x\ry",z\nw\n', [("x\ry", "z")], [(4, 12, "wrong_field_count")]),
    Nasty("crlf in quotes is one line", b'a,b\n"x\r\ny",z\nw\n', [("x\r\ny", "z")], [(4, 13, "wrong_field_count")]),
    Nasty(
        "half a crlf in quotes at the end",
        b'a,b\r\nx,y\r\nz,"w\r',
        [("x", "y")],
        [(3, 10, "unclosed_quote")],
    ),
    Nasty("blank lines before the header", b"\n\r\n\ra,b\nx\n", [], [(5, 8, "wrong_field_count")]),
    Nasty("blank lines between", b"a,b\n\n\nx,y\n\r\n\rz\n", [("x", "y")], [(7, 13, "wrong_field_count")]),
    Nasty("blank lines at the end", b"a,b\nx,y\n\n\r\n\n", [("x", "y")]),
    Nasty("nothing but blank lines after the header", b"a,b\n\n\n\r\n"),
    Nasty("nothing but a header", b"a,b\n"),
    Nasty("nothing but a header, without a line end", b"a,b"),
    Nasty(
        "lines of white space are records",
        b"a,b\n \nx,y\n\t\n",
        [("x", "y")],
        [(2, 4, "wrong_field_count"), (4, 10, "wrong_field_count")],
    ),
    Nasty("the end of the file as CP/M wrote it", b"a,b\r\nx,y\r\n\x1a", [("x", "y")], [(3, 10, "wrong_field_count")]),
    Nasty(
        "other characters that break lines somewhere",
        "a,b\nx\vy,\fz\nno\u0085line,ends\u2028here\u2029\n\x1c,\x1e\n".encode(),
        [("x\vy", "\fz"), ("no\u0085line", "ends\u2028here\u2029"), ("\x1c", "\x1e")],
    ),
    Nasty("one column: a blank line is a null", b"a\nx\n\n\r\ny\n", [("x",), (None,), (None,), ("y",)], table="a text"),
    Nasty(
        "one column: quoted nothing",
        b'a\n""\n\nx\n"',
        [("",), (None,), ("x",)],
        [(5, 8, "unclosed_quote")],
        table="a text",
    ),
    Nasty(
        "one column: a blank line where a value must be",
        b"a\nx\n\ny\n",
        [("x",), ("y",)],
        [(3, 4, "missing_value")],
        table="a text NOT NULL",
    ),
    Nasty("one column: a delimiter", b"a\nx\ny,\nz\n", [("x",), ("z",)], [(3, 4, "wrong_field_count")], table="a text"),
    # For COPY this line would be the end of the data.
    Nasty("one column: the end of the data of COPY", b"a\nx\n\\.\ny\n", [("x",), ("\\.",), ("y",)], table="a text"),
    Nasty("the same where rows go as text", b"a\nx\n\\.\n\ny\n", [("x",), ("\\.",), (None,), ("y",)], table="a name"),
    Nasty(
        "one column: line ends of every kind",
        b"a\r\r\n\rx\n\ry",
        [(None,), (None,), ("x",), (None,), ("y",)],
        table="a text",
    ),
]
