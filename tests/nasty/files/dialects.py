"""Delimiters, `sep=` lines and comments."""

from __future__ import annotations

from typing import Final

from tests.nasty.case import Nasty

_COMMENTS: Final = {"comment": "#"}

FILES: Final = [
    Nasty("semicolons around decimal commas", b'a;b\n1,5;2,5\n;"x;y"\n', [("1,5", "2,5"), (None, "x;y")]),
    Nasty("tabs", b'a\tb\nx, y\t"\t"\n', [("x, y", "\t")]),
    Nasty("vertical bars", b"a|b\nx,y|z;w\n", [("x,y", "z;w")]),
    Nasty("a delimiter that nobody expects", b"a^b\nx,y^z\n", [("x,y", "z")], given={"delimiter": "^"}),
    Nasty("spaces", b'a b\nx y\n"p q" \n', [("x", "y"), ("p q", None)], given={"delimiter": "space"}),
    Nasty("commas in the header's quotes", b'"a,a";b\n1;2,3\n', [("1", "2,3")], table='"a,a" text, b text'),
    Nasty("a line for spreadsheets", b"sep=;\na;b\nx;y\nz\n", [("x", "y")], [(4, 14, "wrong_field_count")]),
    Nasty("the same in quotes and capitals", b'"SEP=|"\r\na|b\r\nx|y\r\n', [("x", "y")]),
    Nasty("the same and blank lines", b"sep=,\n\n\na,b\nx,y\n", [("x", "y")]),
    Nasty("the same after a mark, in UTF-16", b"\xff\xfe" + "sep=;\na;b\nx;y\n".encode("utf-16-le"), [("x", "y")]),
    Nasty("the same among the rows", b"a,b\nsep=;,x\nsep=\n", [("sep=;", "x")], [(3, 12, "wrong_field_count")]),
    Nasty(
        "comments",
        b'# don\'t, "\n#\na,b\n#x,y\nx,y\n# "\nz#,#w\n#',
        [("x", "y"), ("z#", "#w")],
        given=_COMMENTS,
    ),
    Nasty(
        "what begins with a comment's mark elsewhere",
        b'a,b\n"#x",y\n #p,q\n"z\n#w",r\n',
        [("#x", "y"), (" #p", "q"), ("z\n#w", "r")],
        given=_COMMENTS,
    ),
    Nasty("comments that nobody has asked for", b"a,b\n#x,y\n# z\n", [("#x", "y")], [(3, 9, "wrong_field_count")]),
    Nasty("comments in a file of one column", b"a\n#x\n\n#\ny\n", [(None,), ("y",)], given=_COMMENTS, table="a text"),
    Nasty(
        "a comment after an open quote",
        b'a,b\nx,"y\n#"\nz,w\n',
        [("x", "y\n#"), ("z", "w")],
        given=_COMMENTS,
    ),
    Nasty(
        "a comment with no text in it",
        b"a,b\n#\0\xff\nx,y\n#\xe2\x82",
        [("x", "y")],
        given={"comment": "#", "encoding": "utf-8"},
    ),
    Nasty("a mark before a comment", b"\xef\xbb\xbf# c\na,b\nx\n", [], [(3, 11, "wrong_field_count")], given=_COMMENTS),
]
