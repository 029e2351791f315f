"""The file of datasets: what it may say, and where each of its errors stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.config import Settings
from stream_api.datasets.dataset import Dataset, built_in, find_dataset
from stream_api.datasets.file import DatasetsInvalid, datasets_of, parse_datasets, read_datasets
from stream_api.datasets.places import Place, find_places
from stream_api.datasets.rules import ColumnRules
from stream_api.errors import Failure

FULL = r"""
# What the shop sends.
[datasets.orders]
table = "sales.orders"
mode = "append"
conflict = "update"
key = ["order_id"]
max_rejects = "1%"
unknown_columns = "ignore"
ignore = ["internal note"]
trim = true
null = ["NULL", '\N', "N/A"]

[datasets.orders.columns]
order_id = { source = ["Order ID", "order no"], required = true }
loaded_by.constant = "$uploadId"

[datasets.orders.columns.paid_at]
formats = ["%d.%m.%Y", "epoch_s"]
min = 2020-01-01
default = "01.02.2026"

[datasets.orders.columns."Amount €"]
decimal = ","
thousands = "."
min = 0
max = 100.5

[datasets.orders.columns.state]
case = "lower"
values = ["new", "paid", 3]
default = "New"
null = []

[datasets.bare]
table = 'bare'
header = false
fields = ["a", "b"]
max_rejects = 10
"""


def problems(text: str) -> list[str]:
    with pytest.raises(DatasetsInvalid) as caught:
        parse_datasets(text, "d.toml")
    return caught.value.problems


def test_a_file_that_uses_everything() -> None:
    assert parse_datasets(FULL, "d.toml") == {
        "orders": Dataset(
            name="orders",
            table="sales.orders",
            conflict="update",
            key=("order_id",),
            max_rejects="1%",
            unknown_columns="ignore",
            ignore=("internal note",),
            trim=True,
            null=("NULL", "\\N", "N/A"),
            columns={
                "order_id": ColumnRules(source=("Order ID", "order no"), required=True),
                "loaded_by": ColumnRules(constant="$uploadId"),
                "paid_at": ColumnRules(formats=("%d.%m.%Y", "epoch_s"), min="2020-01-01", default="01.02.2026"),
                "Amount €": ColumnRules(decimal=",", thousands=".", min=0, max=100.5),
                "state": ColumnRules(case="lower", values=("new", "paid", 3), default="New", null=()),
            },
        ),
        "bare": Dataset(name="bare", table="bare", header=False, fields=("a", "b"), max_rejects="10"),
    }


def test_errors_of_syntax_have_their_place() -> None:
    assert problems('[datasets.a]\ntable = "a\n') == ["d.toml:2:11: Illegal character '\\n'"]
    assert problems("[datasets.a]\ntable =") == ["d.toml:2:8: Invalid value"]
    assert problems("[datasets.a]\n[datasets.a]\n")[0].startswith("d.toml:2:12: Cannot declare")


def test_all_errors_are_said_at_once_each_with_its_place() -> None:
    text = """
[datasets.orders]
tabel = "orders"
mode = "upsert"
trim = "yes"
columns.amount.decimal = ",,"
  columns . amount . "max" = "x"

[datasets.orders.columns.state]
values = [
    "new",  # a comment with ] and "
    "Paid", 'x',
]
case = "lower"
pattern = "[a-z"

[other]
"""
    found = [problem.partition(" as 2026")[0] for problem in problems(text)]
    assert found == [
        "d.toml:2:11: datasets.orders: has no table",
        "d.toml:3:1: datasets.orders.tabel: is not known; did you mean table?",
        "d.toml:4:1: datasets.orders.mode: may be 'append' or 'atomic' or 'replace'",
        "d.toml:5:1: datasets.orders.trim: must be true or false, not a text",
        "d.toml:6:16: datasets.orders.columns.amount.decimal: ',,' is not one character that could stand in a number",
        "d.toml:7:22: datasets.orders.columns.amount.max: 'x' is neither a number nor a date or time",
        "d.toml:12:5: datasets.orders.columns.state.values[1]: 'Paid' cannot be: case is 'lower'",
        "d.toml:15:1: datasets.orders.columns.state.pattern: is no pattern of RE2: missing ]: [a-z",
        "d.toml:17:2: other: is not known; datasets are tables [datasets.NAME]",
    ]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ('source = "id"', "d.toml:4:1: datasets.d.ignore: 'ID' is a source of column c already"),
        ('source = "Other"', "datasets.d.columns.c.source: 'Other' is the name of column other already"),
        ('constant = "$run"', "datasets.d.columns.c.constant: '$run' is none of $uploadId, $line, $segment; a text"),
        ("constant = 1\ntrim = true", "datasets.d.columns.c.trim: the column has a constant"),
        ("required = true\ndefault = 1", "datasets.d.columns.c.required: with a default no row is without a value"),
        ('formats = ["%d.%m.%Q"]', "datasets.d.columns.c.formats[0]: '%d.%m.%Q': %Q is not known here"),
        ('formats = ["%d", "%d"]', "datasets.d.columns.c.formats[1]: '%d' is there twice"),
        ('formats = "%Y %y"', "datasets.d.columns.c.formats: '%Y %y': it says the year twice"),
        ('formats = "%H %p"', "datasets.d.columns.c.formats: '%H %p': %I and %p belong together"),
        (f'formats = "%Y%m%d{"x" * 1_000_000}"', "datasets.d.columns.c.formats: '%Y%m%dxxx"),
        (r'constant = "a\u0000"', "datasets.d.columns.c.constant: has a NUL character"),
        (r'null = ["", "\u0000"]', "datasets.d.columns.c.null: has a NUL character"),
        ('formats = "today"', "datasets.d.columns.c.formats: 'today': it has no directive"),
        ('formats = "%Y"\nday_first = true', "datasets.d.columns.c.day_first: formats say already"),
        ('formats = "%Y"\ndecimal = ","', "datasets.d.columns.c.decimal: is for numbers"),
        ('thousands = "."', "datasets.d.columns.c.thousands: decimal is '.' too; set decimal as well"),
        ('decimal = "5"', "datasets.d.columns.c.decimal: '5' is not one character"),
        ("min = 2\nmax = 1", "datasets.d.columns.c.min: is more than max"),
        ("min = 2\nmax = 2026-01-01", "datasets.d.columns.c.min: and max are not of one kind"),
        ("min = 2026-01-02T00:00:00\nmax = 2026-01-01T00:00:00Z", "datasets.d.columns.c.min: is more than max"),
        ("min = true", "datasets.d.columns.c.min: 'true' is neither"),
        ('values = ["NULL"]', "datasets.d.columns.c.values[0]: 'NULL' means NULL"),
        ("values = []", "datasets.d.columns.c.values: is empty"),
        ('values = ["a"]\ndefault = "b"', "datasets.d.columns.c.default: 'b' is not among values"),
        ('values = ["a"]\npattern = "b"', "datasets.d.columns.c.values[0]: 'a' does not match pattern"),
        ('default = "ab"\npattern = "a"', "datasets.d.columns.c.default: 'ab' does not match pattern"),
        ("default = 5\nmax = 4", "datasets.d.columns.c.default: '5' is beyond max"),
        ('default = "2026-01-01"\nformats = "%d.%m.%Y"', "datasets.d.columns.c.default: '2026-01-01' fits none of"),
        ('pattern = "a)(b"', "datasets.d.columns.c.pattern: is no pattern of RE2"),
    ],
)  # fmt: skip
def test_what_contradicts_itself(rules: str, message: str) -> None:
    text = '[datasets.d]\ntable = "t"\nnull = "NULL"\nignore = "ID"\ncolumns.other = {}\n[datasets.d.columns.c]\n'
    found = problems(text + rules)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets = 1", "d.toml:1:1: datasets: is no table"),
        ("datasets.a = 1", "d.toml:1:10: datasets.a: is no table"),
        ('[datasets."a b"]\ntable = "t"', 'd.toml:1:11: datasets."a b": the name may have'),
        ('[datasets.a]\ntable = "a.b.c"', "d.toml:2:1: datasets.a.table: must be the name of a table"),
        ('[datasets.a]\ntable = "t"\nname = "x"', "d.toml:3:1: datasets.a.name: is not known"),
        ('[datasets.a]\ntable = "t"\nmax_rejects = "x"', "d.toml:3:1: datasets.a.max_rejects: must be a number"),
        ('[datasets.a]\ntable = "t"\ncolumns = ["x"]', "d.toml:3:1: datasets.a.columns: is no table; names of"),
        ('[datasets.a]\ntable = "t"\ncolumns.x = 1', "d.toml:3:9: datasets.a.columns.x: is no table of rules"),
        ('[datasets.a]\ntable = "t"\nfields = ["x", "X"]', "d.toml:3:16: datasets.a.fields[1]: 'X' is there twice"),
        ('[datasets.a]\ntable = "t"\nkey = ["x", "x"]', "d.toml:3:13: datasets.a.key[1]: 'x' is there twice"),
        ('[datasets.a]\ntable = "t"\nkey = ["x", 1]', "d.toml:3:13: datasets.a.key[1]: must be a text, not a number"),
    ],
)  # fmt: skip
def test_what_is_of_the_wrong_kind(text: str, message: str) -> None:
    (found,) = problems(text)
    assert found.startswith(message)


@pytest.mark.parametrize(
    "text", ["x=" + "[" * 5000 + "]" * 5000, "x=" + "{a=" * 3000 + "1" + "}" * 3000, ".".join("a" * 3000) + "=1"],
    ids=["arrays", "tables", "keys"],
)  # fmt: skip
def test_a_file_that_is_nested_too_deep(text: str) -> None:
    assert problems(text) == ["d.toml: tables or arrays are nested too deep"]


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000])
def test_a_number_of_thousands_of_digits(number: str) -> None:
    (found,) = problems(f'[datasets.d]\ntable = "t"\ncolumns.c.constant = {number}')
    assert "integer" in found.lower()


def _array(items: list[str]) -> str:
    return f"[ {_BETWEEN.join(items)} ]"


_BETWEEN = " , # c ]\n"
_KEYS = st.text("ab-\"'.é\\\n ", max_size=3)
_VALUES = st.recursive(
    st.sampled_from(
        ["1", "-1.5e3", "true", '"a]b}#"', "'''x\n'y'''", '"""a"b\\"""""', "2026-01-01 10:00:00Z", '"\\\\"']
    ),
    lambda inner: st.lists(inner, max_size=3).map(_array),
    max_leaves=4,
)


def _quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@given(st.dictionaries(_KEYS, st.dictionaries(_KEYS, _VALUES, max_size=3), max_size=3), st.booleans())
def test_every_key_has_its_place(tables: dict[str, dict[str, str]], inline: bool) -> None:
    text, expected = "", dict[tuple[str, ...], tuple[int, int]]()

    def note(*path: str) -> None:
        expected[path] = text.count("\n") + 1, len(text) - text.rfind("\n")

    for table, pairs in tables.items():
        if inline:
            note(table)
            text += f"{_quoted(table)} = {{"
            for number, (key, value) in enumerate(pairs.items()):
                text += ", " if number else " "
                note(table, key)
                text += (
                    f"{_quoted(key)} = {value.replace(chr(10), '') if '#' not in value and chr(39) not in value else 1}"
                )
            text += "} # end\n"
        else:
            text += "[ "
            note(table)
            text += f"{_quoted(table)} ] # [x]\n"
            for key, value in pairs.items():
                text += "  "
                note(table, key)
                text += f"{_quoted(key)}= {value}\n\n"
    places = find_places(text)
    assert {path: tuple(place) for path, place in places.items() if not isinstance(path[-1], int)} == expected


def test_places_of_items_and_dotted_keys() -> None:
    text = 'a . "b.c" = [ 1, # x\n  [2, "]"] ]\n[[t]]\nx = 1\n'
    assert find_places(text) == {
        ("a",): Place(1, 1),
        ("a", "b.c"): Place(1, 5),
        ("a", "b.c", 0): Place(1, 15),
        ("a", "b.c", 1): Place(2, 3),
        ("a", "b.c", 1, 0): Place(2, 4),
        ("a", "b.c", 1, 1): Place(2, 7),
        ("t",): Place(3, 3),
        ("t", "x"): Place(4, 1),
    }


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DatasetsInvalid, match="No such file"):
        read_datasets(tmp_path / "none.toml")
    file = tmp_path / "d.toml"
    file.write_bytes(b"# a\r\n\xff")
    with pytest.raises(DatasetsInvalid, match=r"d\.toml:2:1: this is not UTF-8"):
        read_datasets(file)
    file.write_bytes(b"\xef\xbb\xbf[datasets.a]\r\ntable = 't'\r\n")
    assert read_datasets(file).keys() == {"a"}


def test_settings_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "d.toml"
    file.write_text('[datasets.a]\ntable = "t"\n')

    def found(**values: Any) -> dict[str, str]:
        return {name: dataset.table for name, dataset in datasets_of(Settings(**values)).items()}

    monkeypatch.setenv("STREAM_API_DATASETS", "")
    assert found() == {"webhook_events": "webhook_events"}
    monkeypatch.setenv("STREAM_API_DATASETS", str(file))
    assert found(target_table="events") == {"webhook_events": "events", "a": "t"}
    file.write_text('[datasets.webhook_events]\ntable = "mine"\n')
    assert found() == {"webhook_events": "mine"}
    monkeypatch.setenv("STREAM_API_TARGET_TABLE", "events")
    with pytest.raises(DatasetsInvalid, match="STREAM_API_TARGET_TABLE"):
        found()


def test_the_example_of_the_readme_is_right() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    example = readme.partition("```toml\n")[2].partition("```")[0]
    assert parse_datasets(example, "README.md").keys() == {"orders"}
    (wrong,) = problems(example.replace("source =", "sorce ="))
    assert wrong.removeprefix("d.toml") in readme


def test_a_dataset_that_is_not_there() -> None:
    with pytest.raises(Failure, match="Did you mean webhook_events") as caught:
        find_dataset(built_in("events"), "webhook_event")
    assert (caught.value.code, caught.value.extra["datasets"]) == ("dataset_unknown", ["webhook_events"])
    with pytest.raises(Failure, match=r"There is no dataset 'x'\.$"):
        find_dataset(built_in("events"), "x")
