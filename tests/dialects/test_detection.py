"""What is found from the beginning of a file, and what is given stands."""

from __future__ import annotations

import gzip
import time

import msgspec
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_api.dialects.detection import HEAD_BYTES, detect, head_bytes
from stream_api.dialects.dialect import Dialect, Given
from stream_api.errors import Failure

BACKSLASHES = 'a,b\n"x\\"y, z",1\n"",2\n'

CASES: dict[str, tuple[bytes, Dialect]] = {
    "commas": (b"a,b\n1,2\n", Dialect()),
    "nothing at all": (b"", Dialect()),
    "one column": (b"name\nx;y\n", Dialect()),
    "semicolons with decimal commas": (b"a;b\n1,5;2,5\n", Dialect(delimiter=";")),
    "tabs": (b"a\tb\n1,5\t2\n", Dialect(delimiter="\t")),
    "bars": (b"a|b|c\r1|2|3\r", Dialect(delimiter="|")),
    "commas in names": (b"name, first;age, years\nx;1\ny;2\n", Dialect(delimiter=";")),
    "semicolons in quoted names": (b'"a;b;c",d\n1,2\n', Dialect()),
    "a delimiter in the header alone": (b"a|b,c\n1,2\n3,4\n", Dialect()),
    "a header alone": (b"a;b;c", Dialect(delimiter=";")),
    "blank lines first": (b"\r\n\r\na;b\r\n", Dialect(delimiter=";")),
    "sep": (b"sep=;\r\na,b;c\r\n", Dialect(delimiter=";", sep_line=True)),
    "sep in quotes and capitals": (b'"SEP=|"\na|b\n', Dialect(delimiter="|", sep_line=True)),
    "sep of a character that nobody would guess": (b"sep=^\na^b\n", Dialect(delimiter="^", sep_line=True)),
    "a name that begins with sep": (b"sep=ab,c\n", Dialect()),
    "single quotes": (b"'a','b c'\n'1','it''s'\n", Dialect(quote="'")),
    "apostrophes": (b"a,'b'\n'1',2\n", Dialect()),
    "single quotes in values alone": (b"a,b\n'1','2'\n", Dialect()),
    "backslashes": (BACKSLASHES.encode(), Dialect(escape="backslash")),
    "a backslash before a closing quote": (b'a,b\n"C:\\",1\n"D:\\",2\n', Dialect()),
    "json with doubled quotes": (b'a,b\n"{""x"": ""\\""y""}",1\n', Dialect()),
    "UTF-8": ("a;b\nü;€\n".encode(), Dialect(delimiter=";")),
    "UTF-8 with a mark": ("\ufeffsep=;\na;b\nü;€\n".encode(), Dialect(delimiter=";", sep_line=True)),
    "UTF-8 with damage": ("a;b\nü;€\n".encode() + b"\xff;1\n", Dialect(delimiter=";")),
    "damage alone": (b"a,b\n\xff\xfe,1\n", Dialect()),
    "damage with NUL": (b"a,b\n\xe4,1\n\0,2\n", Dialect()),
    "bytes without a meaning": (b"a,b\n\xe4\x81,1\n", Dialect()),
    "UTF-16": ("a;b\nü;€\n".encode("utf-16"), Dialect(delimiter=";", encoding="utf-16-le")),
    "UTF-16 BE": (b"\xfe\xff" + "a\tb\n".encode("utf-16-be"), Dialect(delimiter="\t", encoding="utf-16-be")),
    "UTF-16 without a mark": (
        "id;größe\n1;2\n".encode("utf-16-le"), Dialect(delimiter=";", encoding="utf-16-le")
    ),
    "UTF-16 BE without a mark": ("id;größe\n".encode("utf-16-be"), Dialect(delimiter=";", encoding="utf-16-be")),
    "UTF-16 without a mark, zeros in other places": (
        "id;name\n1;😀 Ā\n".encode("utf-16-le"), Dialect(delimiter=";", encoding="utf-16-le")
    ),
    "UTF-32": ("id;name\n1;2\n".encode("utf-32-le"), Dialect(delimiter=";")),
    "zeros": (bytes(100), Dialect()),
    "Windows-1252": ("a;b\nMüller;5 €\n".encode("cp1252"), Dialect(delimiter=";", encoding="windows-1252")),
    "half a character at the end": ("a,b\n1,€".encode()[:-1], Dialect()),
    "gzip": (gzip.compress(b"a;b\n1;2\n"), Dialect(delimiter=";", compression="gzip")),
    "zstd": (zstd.compress("a;b\nü;2\n".encode("utf-16")),
             Dialect(delimiter=";", encoding="utf-16-le", compression="zstd")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_found(name: str) -> None:
    data, dialect = CASES[name]
    assert detect(data, whole=name != "half a character at the end", given=Given()) == dialect


@pytest.mark.parametrize(
    ("data", "fields", "dialect"),
    [
        (b"a,b;c\n", {"delimiter": "semicolon"}, Dialect(delimiter=";")),
        (b"a\x01b\n", {"delimiter": "\x01"}, Dialect(delimiter="\x01")),
        (b"a\tb\n", {"delimiter": "\\t"}, Dialect(delimiter="\t")),
        (b"sep=;\na,b\n", {"delimiter": ","}, Dialect(sep_line=True)),
        (b"'a','b'\n", {"quote": '"'}, Dialect()),
        (b'a\tb\n"x\ty\n', {"quote": "none"}, Dialect(delimiter="\t", quote=None)),
        (BACKSLASHES.encode(), {"escape": "double"}, Dialect()),
        (b"a,b\n", {"escape": "backslash"}, Dialect(escape="backslash")),
        (b"# x;y;z\na,b;c\n1,2\n", {"comment": "#"}, Dialect(comment="#")),
        (b"|x\na;b\n", {"comment": "pipe"}, Dialect(delimiter=";", comment="|")),
        ("Müller".encode("cp1252"), {"encoding": "utf-8"}, Dialect()),
        ("Müller".encode("latin-1"), {"encoding": "Latin-1"}, Dialect(encoding="iso-8859-1")),
        ("Müller".encode(), {"encoding": "CP1252"}, Dialect(encoding="windows-1252")),
        ("a;b\n".encode("utf-16-be"), {"encoding": "UTF-16BE"}, Dialect(delimiter=";", encoding="utf-16-be")),
        ("a;b\n".encode("utf-16-le"), {"encoding": "utf-16"}, Dialect(delimiter=";", encoding="utf-16-le")),
        ("a;b\n".encode("utf-16-be"), {"encoding": "utf-16"}, Dialect(delimiter=";", encoding="utf-16-be")),
        (b"\xfe\xff" + "a;b\n".encode("utf-16-be"), {"encoding": "utf-16"},
         Dialect(delimiter=";", encoding="utf-16-be")),
    ],
)  # fmt: skip
def test_what_is_given_stands(data: bytes, fields: dict[str, str], dialect: Dialect) -> None:
    said = Given()
    for name, value in fields.items():
        said = said.having(name, value)
    said.check()
    assert detect(data, whole=True, given=said) == dialect


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("delimiter", "", "semicolon"),
        ("delimiter", ",,", "semicolon"),
        ("delimiter", "\n", "no line end"),
        ("delimiter", "§", "one ASCII character"),
        ("delimiter", "\0", "no NUL"),
        ("quote", "nothing", "none"),
        ("escape", "quote", "backslash"),
        ("comment", "--", "one ASCII character"),
        ("encoding", "utf-7", "windows-1252"),
    ],
)
def test_what_may_not_be_given(name: str, value: str, allowed: str) -> None:
    with pytest.raises(Failure) as caught:
        Given().having(name, value)
    assert (caught.value.code, caught.value.status, caught.value.extra["field"]) == ("dialect_invalid", 422, name)
    assert allowed in caught.value.detail
    assert any(allowed in each for each in caught.value.extra["allowed"])


@pytest.mark.parametrize(
    "fields",
    [
        {"delimiter": ";", "comment": ";"},
        {"delimiter": "'", "quote": "'"},
        {"escape": "backslash", "quote": "\\"},
    ],
)
def test_one_character_may_not_have_two_meanings(fields: dict[str, str]) -> None:
    said = Given()
    for name, value in fields.items():
        said = said.having(name, value)
    with pytest.raises(Failure) as caught:
        said.check()
    assert caught.value.code == "dialect_invalid"


def test_what_is_given_may_clash_with_what_is_found() -> None:
    with pytest.raises(Failure) as caught:
        detect(b"a,b\n", whole=True, given=Given().having("delimiter", '"'))
    assert caught.value.code == "dialect_invalid"


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(st.sampled_from(",;|\t'\"\\a\r\n#")).map(str.encode), st.booleans())
def test_any_bytes_give_a_dialect(data: bytes, whole: bool) -> None:
    try:
        dialect = detect(data, whole=whole, given=Given())
    except Failure as failure:
        assert failure.code == "compression_invalid"  # noqa: PT017 (it may come or not)
        return
    assert msgspec.json.decode(msgspec.json.encode(dialect), type=Dialect) == dialect


@pytest.mark.parametrize(
    "data", [b'"' * HEAD_BYTES, b"a,b;c|d\te\n" * HEAD_BYTES, b'a,b\n"\\"' + b'\\"' * HEAD_BYTES, b"'" * HEAD_BYTES]
)
def test_it_takes_little_time(data: bytes) -> None:
    began = time.process_time()
    detect(data[:HEAD_BYTES], whole=False, given=Given())
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize("nothing", [b"\x50\x2a\x4d\x18" + bytes(4), zstd.compress(b"")], ids=["skippable", "empty"])
def test_a_beginning_of_nothing_but_frames_without_data_takes_little_time(nothing: bytes) -> None:
    head = nothing * (head_bytes(nothing) // len(nothing))
    began = time.process_time()
    assert detect(head, whole=False, given=Given()) == Dialect(compression="zstd")
    # Each frame of them would have taken some half a second.
    assert time.process_time() - began < 0.2
    few = nothing * 400 + zstd.compress(b"a;b\n1;2\n")
    assert detect(few, whole=True, given=Given()) == Dialect(delimiter=";", compression="zstd")
