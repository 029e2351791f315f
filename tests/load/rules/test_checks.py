"""Required and allowed values and patterns against plain Python."""

from __future__ import annotations

import re

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from stream_api.datasets.plan import PlanColumn
from stream_api.datasets.rules import Rules
from stream_api.load.columns.readers import column_reader
from stream_api.load.rules.stage import AppliedRules, column_rules

_TEXTS = st.text("abAB1\n ", max_size=4)
#: RE2 and Python agree on these.
_PATTERNS = ["a*b?", "[A-Z]+[0-9]", "(a|ab)(1|)", ".", "(?s).*", "(?i)AB", "^a$", "", "a|b"]


def column(rules: Rules) -> PlanColumn:
    return PlanColumn(name="c", source="C", kind="text", type="text", position=0, rules=rules)


def found(rules: Rules, values: list[str | None]) -> list[str | None]:
    """For each value the code of the rule that it breaks first."""
    of = column(rules)
    texts = pa.array(values, pa.string())
    codes: list[str | None] = [None] * len(values)
    for each in AppliedRules(of).check(texts, column_reader(of, encoding="UTF8")(texts)):
        for row, broken in enumerate(each.rows.tolist()):
            if broken:
                codes[row] = codes[row] or each.fault.code
    return codes


@given(
    st.lists(st.none() | _TEXTS, max_size=8),
    st.booleans(),
    st.none() | st.lists(_TEXTS, min_size=1, max_size=5).map(tuple),
    st.none() | st.sampled_from(_PATTERNS),
)
def test_checks_are_what_plain_python_says(
    values: list[str | None], required: bool, allowed: tuple[str, ...] | None, pattern: str | None
) -> None:
    def expected(value: str | None) -> str | None:
        if value is None:
            return "missing_value" if required else None
        if allowed is not None and value not in allowed:
            return "not_allowed"
        # A `$` of RE2 is the end of the text, a line end before it or not.
        if pattern is not None and re.fullmatch(pattern.replace("$", r"\Z"), value) is None:
            return "pattern_mismatch"
        return None

    rules = Rules(required=required, values=allowed, pattern=pattern)
    assert found(rules, values) == [expected(value) for value in values]


def test_reasons_name_the_rule_and_not_too_much_of_it() -> None:
    many = Rules(values=tuple(map(str, range(1000))))
    texts = pa.array(["x"], pa.string())
    (broken,) = AppliedRules(column(many)).check(texts, column_reader(column(many), encoding="UTF8")(texts))
    assert broken.fault.reason == "The value is none of those allowed: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …"


def test_a_column_without_rules_has_no_stage() -> None:
    assert column_rules(PlanColumn(name="c", source="c", kind="text", type="text", position=0)) is None


def test_a_reason_stays_a_line_however_long_the_rule_is() -> None:
    rules = Rules(values=("v" * 100_000, "w" * 100_000), pattern="|".join(map(str, range(1000))))
    of, texts = column(rules), pa.array(["x"], pa.string())
    reasons = [each.fault.reason for each in AppliedRules(of).check(texts, column_reader(of, encoding="UTF8")(texts))]
    assert len(reasons) == 2
    assert all(len(reason) < 400 for reason in reasons)
