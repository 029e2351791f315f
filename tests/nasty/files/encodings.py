"""Encodings, byte order marks, bytes that are no text, and characters whose bytes look like others."""

from __future__ import annotations

from typing import Final

from tests.nasty.case import Nasty, Reject, Row

_UTF8: Final = {"encoding": "utf-8"}
_1252: Final = {"encoding": "windows-1252"}


def _bad(data: bytes, code: str = "invalid_utf8") -> tuple[bytes, list[Row], list[Reject]]:
    """Damage between two good records, which costs its own only: on line 3, at byte 8."""
    return b"a,b\nx,y\n" + data + b"\nz,w\n", [("x", "y"), ("z", "w")], [(3, 8, code)]


FILES: Final = [
    Nasty("a mark", b"\xef\xbb\xbfa,b\nx,y\nz\n", [("x", "y")], [(3, 11, "wrong_field_count")]),
    Nasty("a mark before a quote", b'\xef\xbb\xbf"a",b\n"x",y\n', [("x", "y")]),
    Nasty("a mark before blank lines", b"\xef\xbb\xbf\n\na,b\nx\n", [], [(4, 9, "wrong_field_count")]),
    Nasty("a mark and nothing else", b"\xef\xbb\xbf", fails="header_mismatch"),
    Nasty("two marks", b"\xef\xbb\xbf\xef\xbb\xbfa,b\nx,y\n", fails="header_mismatch"),
    Nasty("a mark amid the file is a character", "a,b\n\ufeffx,\ufeff\n".encode(), [("\ufeffx", "\ufeff")]),
    Nasty("four bytes", "a,b\n😀,é😀€\n".encode(), [("😀", "é😀€")]),
    Nasty("no characters, yet valid", "a,b\n\uffff,\U0010ffff\n".encode(), [("\uffff", "\U0010ffff")]),
    Nasty(
        "marks that turn and join", "a,b\n\u202ex\u202c,e\u0301\u200d\n".encode(), [("\u202ex\u202c", "e\u0301\u200d")]
    ),
    Nasty("a byte that is never in UTF-8", *_bad(b"p,\xff")),
    Nasty("an overlong form", *_bad(b"p,\xc0\xaf"), given=_UTF8),
    Nasty("half a pair in UTF-8", *_bad(b"p,\xed\xa0\x80"), given=_UTF8),
    Nasty("beyond the last character", *_bad(b"p,\xf4\x90\x80\x80"), given=_UTF8),
    Nasty("a byte that goes on from nothing", *_bad(b"\x80,p"), given=_UTF8),
    Nasty("cut off by a delimiter", *_bad(b"\xe2\x82,p"), given=_UTF8),
    Nasty("cut off by a line end", *_bad(b"p,\xe2\x82"), given=_UTF8),
    Nasty("cut off by a quote", *_bad(b'p,"\xe2\x82"'), given=_UTF8),
    Nasty("no UTF-8 and a wrong number of fields", *_bad(b"\xff")),
    Nasty("no UTF-8 and a NUL", *_bad(b"\xff\0,p", "nul_byte"), given=_UTF8),
    Nasty(
        "cut off by the end of the file",
        b"a,b\nx,y\np,\xf0\x9f\x98",
        [("x", "y")],
        [(3, 8, "invalid_utf8")],
        given=_UTF8,
    ),
    Nasty(
        "a bad byte in a record of several lines",
        b'a,b\nx,"y\n\xff\nz"\np,q\n',
        [("p", "q")],
        [(2, 4, "invalid_utf8")],
    ),
    Nasty(
        "UTF-8 that is damaged is no Windows-1252",
        "a,b\né,y\n".encode() + b"\xe9,w\n",
        [("é", "y")],
        [(3, 9, "invalid_utf8")],
    ),
    Nasty("a NUL", *_bad(b"p,\0", "nul_byte")),
    Nasty("a NUL in quotes over lines", b'a,b\n"x\n\0",y\np,q\n', [("p", "q")], [(2, 4, "nul_byte")]),
    Nasty("a NUL and a wrong number of fields", *_bad(b"\0", "nul_byte")),
    Nasty("a NUL after an open quote", b'a,b\nx,y\n\0,"p\nz,w\n', [("x", "y"), ("z", "w")], [(3, 8, "unclosed_quote")]),
    Nasty(
        "UTF-16, little end first",
        b"\xff\xfe" + "a,b\nx,é\nz\n".encode("utf-16-le"),
        [("x", "é")],
        [(3, 18, "wrong_field_count")],
    ),
    Nasty(
        "UTF-16, big end first",
        b"\xfe\xff" + 'a,b\r\n"x\r\ny",é\r\nz\r\n'.encode("utf-16-be"),
        [("x\r\ny", "é")],
        [(4, 32, "wrong_field_count")],
    ),
    Nasty("UTF-16 without a mark", "a,b\nx,é\nz,€\n".encode("utf-16-le"), [("x", "é"), ("z", "€")]),
    Nasty("UTF-16 without a mark, big", "a,b\nx,é\nz,€\n".encode("utf-16-be"), [("x", "é"), ("z", "€")]),
    # U+2C2C, U+0A0A, U+2222, U+0D0D, U+0D2C and U+0A22: each byte is a mark.
    Nasty(
        "UTF-16 whose bytes are commas, quotes and line ends",
        b"\xff\xfe" + "a,b\n\u2c2c\u0a0a,\u2222\u0d0d\n\u0d2c,\u0a22\n".encode("utf-16-le"),
        [("\u2c2c\u0a0a", "\u2222\u0d0d"), ("\u0d2c", "\u0a22")],
    ),
    Nasty(
        "the same with the other end first",
        b"\xfe\xff" + "a,b\n\u2c2c\u0a0a,\u2222\u0d0d\n\u2c0d,\u220a\n".encode("utf-16-be"),
        [("\u2c2c\u0a0a", "\u2222\u0d0d"), ("\u2c0d", "\u220a")],
    ),
    Nasty("UTF-16 beyond its units", b"\xff\xfe" + "a,b\n😀,\U0010ffff\n".encode("utf-16-le"), [("😀", "\U0010ffff")]),
    Nasty(
        "UTF-16 with halves of pairs",
        b"\xff\xfe"
        + "a,b\nx,y\n".encode("utf-16-le")
        + b"\x3d\xd8,\0z\0\n\0"
        + b"z\0,\0\x00\xde\n\0"
        + "p,q\n".encode("utf-16-le"),
        [("x", "y"), ("p", "q")],
        [(3, 18, "invalid_encoding"), (4, 26, "invalid_encoding")],
    ),
    Nasty(
        "UTF-16 with half a unit at the end",
        b"\xff\xfe" + "a,b\nx,y\nz,w".encode("utf-16-le") + b"q",
        [("x", "y")],
        [(3, 18, "invalid_encoding")],
    ),
    Nasty(
        "UTF-16 with a NUL", b"\xff\xfe" + "a,b\nx,y\nz,\0\n".encode("utf-16-le"), [("x", "y")], [(3, 18, "nul_byte")]
    ),
    Nasty(
        "UTF-16 with an open quote",
        b"\xff\xfe" + 'a,b\n"x,y\nz,w\n'.encode("utf-16-le"),
        [("z", "w")],
        [(2, 10, "unclosed_quote")],
    ),
    Nasty("Latin-1 as said", b"a,b\ncaf\xe9,\x80\xff\n", [("café", "\x80ÿ")], given={"encoding": "latin1"}),
    Nasty("Windows-1252 as found", b"a,b\ncaf\xe9,\x80\n", [("café", "€")]),
    # The quotes of word processors are no quotes.
    Nasty(
        "Windows-1252 with its own quotes",
        b"a,b\n\x93x,y\x94\n\x91p\x92,q\n",
        [("\u201cx", "y\u201d"), ("\u2018p\u2019", "q")],
    ),
    Nasty("Windows-1252 with a byte that means nothing", *_bad(b"p,\x81", "invalid_encoding"), given=_1252),
]
