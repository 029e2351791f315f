"""What the rules of a column make of its fields, against plain Python."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.datasets.rules import Rules
from stream_api.load.rules.cleaning import Cleaner

#: What both Unicode and Python call white space; Python has some control characters beside.
_BLANK = " \t\n\v\f\r\x85\xa0\u1680\u2003\u2028\u202f\u3000"
texts = st.text(st.sampled_from([*"aBÄäжN/", *_BLANK, "\u200b"]), max_size=6) | st.sampled_from(["", "NULL", "N/A"])
columns = st.lists(st.none() | texts, max_size=8)


def clean(rules: Rules, values: Sequence[str | None], base: str = "") -> list[str | None]:
    return Cleaner(rules, base).clean(pa.array(values, pa.string()))[0].to_pylist()


def refused(rules: Rules, values: Sequence[str | None], base: str = "") -> list[int]:
    """The numbers of the values that no format fits."""
    cleaned, found = Cleaner(rules, base).clean(pa.array(values, pa.string()))
    if found is None:
        return []
    rows = found.rows.tolist()
    assert not any(row and value.is_valid for row, value in zip(rows, cleaned, strict=True))
    return [number for number, row in enumerate(rows) if row]


def test_trim_and_what_it_leaves_empty() -> None:
    assert clean(Rules(trim=True), [" a ", "  ", "", None, "b", "\u00a0\tc d\u2003"]) == [
        "a", None, "", None, "b", "c d",
    ]  # fmt: skip


@given(columns, st.sampled_from([(), ("NULL",), ("", "N/A", "a")]), st.none() | texts, st.booleans())
def test_cleaning_is_what_plain_python_does(
    values: list[str | None], null: tuple[str, ...], default: str | None, trim: bool
) -> None:
    for case, change in ((None, str), ("upper", str.upper), ("lower", str.lower)):

        def expected(value: str | None) -> str | None:
            if trim and value:
                value = value.strip(_BLANK) or None
            if value in null:
                value = None
            if value is None:
                value = default
            return value and change(value)  # noqa: B023

        rules = Rules(trim=trim, null=null, default=default, case=case)  # type: ignore[arg-type]
        assert clean(rules, values) == [expected(value) for value in values]


@pytest.mark.parametrize(
    ("decimal", "thousands", "values", "expected"),
    [
        (",", ".", ["1.234,50", "1,5", "-1.234.567", "+0,5", ",5", "5,", "1e3", "1,5E-3", " 7 ", "12"],
         ["1234.50", "1.5", "-1234567", "+0.5", ".5", "5.", "1e3", "1.5E-3", " 7 ", "12"]),
        (",", ".", ["1.5", "1.23", "1234.567", "12.3456", "1,2,3", "1,234.5", "", "--1", "1 2"], [None] * 9),
        (",", "", ["1,5", "1.5", "1234,5", "1.234,5"], ["1.5", None, "1234.5", None]),
        (".", ",", ["1,234.5", "1234.5", "1,23", "1,234,567"], ["1234.5", "1234.5", None, "1234567"]),
        (".", "'", ["1'234.5", "1'2"], ["1234.5", None]),
        (",", "\u202f", ["12\u202f345,6", "12 345,6"], ["12345.6", None]),
        (",", " ", ["12 345,6", "1 2"], ["12345.6", None]),
        (",", ".", ["NaN", "-Infinity", "inf", "N.aN", None], ["NaN", "-Infinity", "inf", None, None]),
    ],
)  # fmt: skip
def test_numbers_with_other_signs(
    decimal: str, thousands: str, values: list[str | None], expected: list[str | None]
) -> None:
    rules = Rules(decimal=decimal, thousands=thousands)
    assert clean(rules, values) == expected
    wrong = [n for n, (value, read) in enumerate(zip(values, expected, strict=True)) if value is not None and not read]
    assert refused(rules, values) == wrong


_SIGNS = [(",", "."), (".", ","), (",", " "), (".", "'"), ("·", "\u00a0")]


@given(
    st.lists(st.decimals(-(10**12), 10**12, places=3) | st.integers(-(10**9), 10**9), max_size=5),
    st.sampled_from(_SIGNS),
    st.booleans(),
)
def test_every_number_written_with_other_signs_is_read(
    numbers: list[object], signs: tuple[str, str], grouped: bool
) -> None:
    decimal, thousands = signs
    swap = {",": thousands, ".": decimal}
    written = [re.sub("[,.]", lambda found: swap[found[0]], f"{n:,}" if grouped else f"{n}") for n in numbers]
    assert clean(Rules(decimal=decimal, thousands=thousands), written) == [f"{number}" for number in numbers]


@given(st.lists(st.text("0123456789.,+-e ", max_size=9), max_size=6))
def test_nothing_is_read_as_another_number(values: list[str]) -> None:
    for value, read in zip(values, clean(Rules(decimal=",", thousands="."), values), strict=True):
        if read is not None and not value.strip().lstrip("+-").isalpha():
            mantissa = value.partition("e")[0].strip()
            whole = mantissa.partition(",")[0].lstrip("+-")
            assert "." not in whole or all(len(group) == 3 for group in whole.split(".")[1:])
            assert float(read) == float(value.replace(".", "").replace(",", "."))


def test_in_another_case_a_letter_is_still_one_letter() -> None:
    assert clean(Rules(case="upper"), ["Straße ŉ ﬁ"]) == ["STRAẞE ŉ ﬁ"]


def test_a_default_is_cleaned_like_a_field() -> None:
    rules = Rules(default="1.2.2026", formats=("%d.%m.%Y",), base="date")
    assert clean(rules, ["3.2.2026", None], "date") == ["2026-02-03", "2026-02-01"]
    assert clean(Rules(default="ab", case="upper", null=("AB",)), [None, "AB", "x"]) == ["AB", "AB", "X"]


def test_what_no_format_fits_is_refused_and_nulls_are_not() -> None:
    rules = Rules(formats=("%d.%m.%Y", "epoch_s"), null=("-",))
    assert refused(rules, ["3.2.2026", None, "30.2.2026", "-", "", "0"], "date") == [2, 4]


def test_columns_with_nothing_to_do_are_given_back_as_they_are() -> None:
    values = pa.array(["a", "b"], pa.string())
    cleaned, found = Cleaner(Rules(null=("NULL",), default="x"), "").clean(values)
    assert cleaned is values
    assert found is None
