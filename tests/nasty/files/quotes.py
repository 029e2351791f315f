"""Quotes: where they are meant, where they are not, and where they are missing."""

from __future__ import annotations

from typing import Final

from tests.nasty.case import Nasty

# The header takes 4 bytes and line 1, so the first record stands at byte 4 and on line 2.
FILES: Final = [
    Nasty("empty quoted is no null", b'a,b\n"",\n,""\n', [("", None), (None, "")]),
    Nasty("quoted nothing at the end of the file", b'a,b\nx,""', [("x", "")]),
    Nasty("nothing after a quoted field at the end", b'a,b\n"",', [("", None)]),
    Nasty("doubled", b'a,b\n"x""y",""""\n', [('x"y', '"')]),
    Nasty("doubled at both edges", b'a,b\n"""x""",""""""\n', [('"x"', '""')]),
    Nasty("within a plain field", b'a,b\n5" pipe,6\' 2"\n', [('5" pipe', "6' 2\"")]),
    Nasty("text after the closing quote", b'a,b\n"x"y,"z" \n', [("xy", "z ")]),
    Nasty("quotes after the closing quote", b'a,b\n"x"y"z",w\n', [('xy"z"', "w")]),
    Nasty("after a space", b'a,b\n "x", y "\n', [(' "x"', ' y "')]),
    Nasty("after a space, around a delimiter", b'a,b\n "x,y",z\np,q\n', [("p", "q")], [(2, 4, "wrong_field_count")]),
    Nasty("within two plain fields", b'a,b\nx"y,z"w\n', [('x"y', 'z"w')]),
    Nasty("around delimiters", b'a,b\n"x,y",","\n', [("x,y", ",")]),
    Nasty("around line ends", b'a,b\n"x\ny",z\n"p\r\nq","r\rs"\n', [("x\ny", "z"), ("p\r\nq", "r\rs")]),
    Nasty("around nothing but line ends", b'a,b\n"\n","\r\n"\n', [("\n", "\r\n")]),
    Nasty("around blank lines", b'a,b\n"x\n\n\ny",z\nw\n', [("x\n\n\ny", "z")], [(6, 14, "wrong_field_count")]),
    Nasty("around what looks like records", b'a,b\n"x\n1,2\n3,4",z\n', [("x\n1,2\n3,4", "z")]),
    Nasty("around the whole last record", b'a,b\n"x","y"', [("x", "y")]),
    Nasty("never closed on the last line", b'a,b\nx,y\nz,"w\n', [("x", "y")], [(3, 8, "unclosed_quote")]),
    Nasty("the last byte", b'a,b\nx,y\nz,"', [("x", "y")], [(3, 8, "unclosed_quote")]),
    Nasty(
        "never closed in the middle",
        b'a,b\nx,"y\nz,w\np,q\n',
        [("z", "w"), ("p", "q")],
        [(2, 4, "unclosed_quote")],
    ),
    Nasty(
        "closed by the opening quote of a later record",
        b'a,b\nx,"y\nz,w\n"p",q\n',
        [("z", "w"), ("p", "q")],
        [(2, 4, "unclosed_quote")],
    ),
    Nasty("closed well on a later line", b'a,b\nx,"y\nz,w"\np,q\n', [("x", "y\nz,w"), ("p", "q")]),
    Nasty(
        "two strays",
        b'a,b\n"x,y\nz,"w\np,q\n',
        [("p", "q")],
        [(2, 4, "unclosed_quote"), (3, 9, "unclosed_quote")],
    ),
    Nasty(
        "text after a closing quote on a later line", b'a,b\n"x\ny"z,w\n', [('y"z', "w")], [(2, 4, "unclosed_quote")]
    ),
    Nasty("alone on a line", b'a,b\n"\nx,y\n', [("x", "y")], [(2, 4, "unclosed_quote")]),
    Nasty("three on a line", b'a,b\n"""\nx,y\n', [("x", "y")], [(2, 4, "unclosed_quote")]),
    Nasty("four are one", b'a,b\n"""",x\n', [('"', "x")]),
    Nasty(
        "on every line one",
        b'a,b\n"x,1\n"y,2\n"z,3\n',
        [],
        [(2, 4, "unclosed_quote"), (3, 9, "unclosed_quote"), (4, 14, "unclosed_quote")],
    ),
    Nasty(
        "a stray before a field of several lines",
        b'a,b\n"x,1\n"y\nz",2\np,q\n',
        [("y\nz", "2"), ("p", "q")],
        [(2, 4, "unclosed_quote")],
    ),
    Nasty(
        "a stray before an empty quoted field",
        b'a,b\n"x,1\n"",2\n"y",3\n',
        [("", "2"), ("y", "3")],
        [(2, 4, "unclosed_quote")],
    ),
    Nasty("apostrophes mean nothing", b"a,b\n'x,y',z\n'p',q\n", [("'p'", "q")], [(2, 4, "wrong_field_count")]),
    Nasty("apostrophes as the header has them", b"'a','b'\n'x,y','it''s \"it\"'\n", [("x,y", 'it\'s "it"')]),
    Nasty("none at all", b'a,b\n"x,"y"\n', [('"x', '"y"')], given={"quote": "none"}),
    Nasty("another character", b"a,b\n|x,y|,z||w\n", [("x,y", "z||w")], given={"quote": "|", "delimiter": ","}),
    Nasty(
        "backslashes as said",
        b'a,b\n"x\\"y","p\\\\"\n"C:\\new",\\N\n"""",\\"z\n',
        [('x"y', "p\\"), ("C:\\new", "\\N"), ('"', '\\"z')],
        given={"escape": "backslash"},
    ),
    Nasty("backslashes as found", b'a,b\n"x\\"y",z\n"1,\\"",2\n', [('x"y', "z"), ('1,"', "2")]),
    Nasty("backslashes without a meaning", b'a,b\n"x\\",y\n"\\\\",z\n', [("x\\", "y"), ("\\\\", "z")]),
    Nasty(
        "a backslash that takes the closing quote",
        b'a,b\n"x\\\\",y\n"z\\",w\np,q\n',
        [("x\\", "y"), ("p", "q")],
        [(3, 12, "unclosed_quote")],
        given={"escape": "backslash"},
    ),
]
