"""Questions to a real Postgres."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from stream_api.errors import Failure
from stream_api.load import judge as judging
from stream_api.load.judge import Judge, Question, Refusal
from tests.load.values import connected
from tests.support.faults import FaultProxy

_TYPES = """
CREATE FUNCTION picky(value text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF value LIKE 'throw%' THEN RAISE EXCEPTION 'thrown by %', value USING DETAIL = 'on purpose'; END IF;
    RETURN value <> 'refused';
END $$;
CREATE DOMAIN picky AS text CHECK (picky(VALUE));
CREATE DOMAIN never_null AS int CHECK (VALUE IS NOT NULL);
CREATE DOMAIN any_int AS int;
"""


async def test_values_that_are_taken_are_not_in_the_answer(empty_database: str) -> None:
    async with connected(empty_database) as pool:
        answer = await Judge(pool).ask([
            Question("integer", " 1 "), Question("integer", "x"), Question("numeric(12,2)", "1e10"),
            Question("character varying(3)", "abcd"), Question("character varying(3)", "abc  "),
            Question("jsonb", '{"a":'), Question("date", "2026-02-30"), Question("integer", "x"),
        ])  # fmt: skip
    assert answer == {
        Question("integer", "x"): Refusal('invalid input syntax for type integer: "x"', "22P02"),
        Question("numeric(12,2)", "1e10"): Refusal(
            "numeric field overflow: "
            "A field with precision 12, scale 2 must round to an absolute value less than 10^10.",
            "22003",
        ),
        Question("character varying(3)", "abcd"): Refusal("value too long for type character varying(3)", "22001"),
        Question("jsonb", '{"a":'): Refusal(
            "invalid input syntax for type json: The input string ended unexpectedly.", "22P02"
        ),
        Question("date", "2026-02-30"): Refusal('date/time field value out of range: "2026-02-30"', "22008"),
    }


async def test_values_that_make_the_query_itself_fail(empty_database: str) -> None:
    async with connected(empty_database) as pool:
        await pool.execute(_TYPES)
        deep = "[" * 200_000
        values = [f"fine {n}" for n in range(50)] + ["throw 1", "refused", "throw 2"]
        questions = [Question("public.picky", value) for value in values] + [Question("jsonb", deep)]
        answer = await Judge(pool).ask(questions)
        assert {question.value: refusal.sqlstate for question, refusal in answer.items()} == {
            "throw 1": "P0001", "refused": "23514", "throw 2": "P0001", deep: "54001",
        }  # fmt: skip
        assert answer[Question("public.picky", "throw 1")].message == "thrown by throw 1: on purpose"
        assert await Judge(pool).ask([Question("integer", "1")]) == {}


async def test_a_domain_is_asked_about_null(empty_database: str) -> None:
    refused, taken = Question("public.never_null", None), Question("public.any_int", None)
    async with connected(empty_database) as pool:
        await pool.execute(_TYPES)
        answer = await Judge(pool).ask([refused, taken])
    assert answer.keys() == {refused}
    assert answer[refused].sqlstate == "23514"


async def test_many_values_and_large_ones_go_in_several_queries(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = judging._ask

    async def counting(connection: Any, questions: list[Question]) -> dict[Question, Refusal]:
        asked.append(len(questions))
        return await ask(connection, questions)

    monkeypatch.setattr(judging, "_ask", counting)
    large = [str(n) + "x" * 200_000 for n in range(4)]
    questions = [Question("integer", f"{n}x") for n in range(2500)] + [Question("integer", text) for text in large]
    async with connected(empty_database) as pool:
        answer = await Judge(pool).ask(questions)
    assert asked == [1000, 1000, 501, 1, 1, 1]
    assert answer.keys() == set(questions)
    assert max(len(refusal.message) for refusal in answer.values()) <= 300


async def test_short_values_are_asked_about_once_in_a_load(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str | None]] = []
    ask = judging._ask

    async def listening(connection: Any, questions: list[Question]) -> dict[Question, Refusal]:
        asked.append([question.value for question in questions])
        return await ask(connection, questions)

    monkeypatch.setattr(judging, "_ask", listening)
    monkeypatch.setattr(judging, "_REMEMBERED", 3)
    good, bad, long = (Question("integer", text) for text in (" 1", "N/A", "x" * 65))
    async with connected(empty_database) as pool:
        judge = Judge(pool)
        first = await judge.ask([good, bad, long])
        assert await judge.ask([good, bad, long]) == first == await Judge(pool).ask([good, bad, long])
        assert first.keys() == {bad, long}
        # The same word for another type is another question.
        assert await judge.ask([Question("date", "N/A"), bad]) == {
            bad: first[bad],
            Question("date", "N/A"): Refusal('invalid input syntax for type date: "N/A"', "22007"),
        }
        # The fourth makes room for itself: all others are forgotten.
        await judge.ask([Question("integer", "+4")])
        await judge.ask([good, bad])
    assert asked == [[" 1", "N/A", "x" * 65], ["x" * 65], [" 1", "N/A", "x" * 65], ["N/A"], ["+4"], [" 1", "N/A"]]


async def test_a_type_that_is_gone(empty_database: str) -> None:
    async with connected(empty_database) as pool:
        with pytest.raises(Failure) as caught:
            await Judge(pool).ask([Question("public.gone", "x")])
        assert caught.value.code == "plan_changed"
        with pytest.raises(Failure) as caught:
            await Judge(pool).ask([Question("public.gone", None)])
        assert caught.value.code == "plan_changed"


async def test_an_outage_is_a_failure_and_not_a_refusal(empty_database: str) -> None:
    async with FaultProxy.before(empty_database) as proxy, connected(proxy.url(empty_database)) as pool:
        judge = Judge(pool)
        assert await judge.ask([Question("integer", "1")]) == {}
        await proxy.refuse()
        with pytest.raises(Failure) as caught:
            await judge.ask([Question("integer", "2")])
        assert (caught.value.code, caught.value.transient) == ("database_unavailable", True)
        await proxy.restore()
        assert await judge.ask([Question("integer", "2")]) == {}


async def test_a_cancelled_statement_is_no_refusal(empty_database: str) -> None:
    async with connected(empty_database) as pool:
        await pool.execute("""
            CREATE FUNCTION slow(v text) RETURNS boolean LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(60); RETURN true; END';
            CREATE DOMAIN slow AS text CHECK (slow(VALUE));
        """)
    async with asyncpg.create_pool(empty_database, min_size=0, server_settings={"statement_timeout": "50"}) as pool:
        with pytest.raises(Failure) as caught:
            await Judge(pool).ask([Question("public.slow", "x")])
        assert caught.value.code == "database_unavailable"
