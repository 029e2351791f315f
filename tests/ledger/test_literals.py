from __future__ import annotations

from uuid import UUID, uuid4

import asyncpg
import pytest

from stream_api.ledger.literals import call, literal

TEXTS = [
    "", "'", "''", "\\", "\\'", "'; DROP TABLE t; --", "\\'; DROP TABLE t; --", "a\nb\r\tc\b", "$1", "$$", "%s", "{}",
    "E'\\\\'", "\\x41", "\\u0041", "\\101", "Ünïcödé ✓ 𝄞", "/* */ -- ", "?", ":name", "x" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("settings", [("on", "safe_encoding"), ("off", "on"), ("off", "off")])
async def test_a_text_means_itself_whatever_the_session_has_set(database: str, settings: tuple[str, str]) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute(
        f"SET standard_conforming_strings = {settings[0]}; SET backslash_quote = {settings[1]};"
        "CREATE TEMP TABLE t (number int, text text)"
    )
    values = ", ".join(f"({literal(number)}, {literal(text)})" for number, text in enumerate(TEXTS))
    await connection.execute(f"INSERT INTO t VALUES {values}")
    assert [row["text"] for row in await connection.fetch("SELECT text FROM t ORDER BY number")] == TEXTS
    await connection.close()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *[("bigint", number) for number in (0, -1, 2**31, -(2**63) + 1, 2**63 - 1)],
        *[("bytea", value) for value in (b"", b"\0", bytes(range(256)), b"\\x41'")],
        ("uuid", UUID(int=0)),
        ("uuid", uuid4()),
        *[(kind, None) for kind in ("bigint", "bytea", "uuid", "text")],
    ],
)
async def test_other_values_mean_themselves(database: str, kind: str, value: int | bytes | UUID | None) -> None:
    connection = await asyncpg.connect(database)
    found = await connection.fetchval(f"SELECT {call('coalesce', literal(value), literal(None))}::{kind}")
    assert found == value
    await connection.close()


def test_nul_would_end_the_statement() -> None:
    with pytest.raises(ValueError, match="NUL"):
        literal("a\0b")
