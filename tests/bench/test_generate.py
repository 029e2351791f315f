from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from bench.generate import KINDS, Summary, generate

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}")


def _file(rows: int, *, seed: int = 0, invalid: float = 0.0) -> tuple[bytes, Summary]:
    summary = Summary()
    return b"".join(generate(rows, seed=seed, invalid=invalid, summary=summary)), summary


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others() -> None:
    assert _file(12_000, seed=7, invalid=0.1) == _file(12_000, seed=7, invalid=0.1)
    assert _file(100, seed=7)[0] != _file(100, seed=8)[0]


def test_valid_rows_are_about_200_bytes_and_various() -> None:
    data, summary = _file(20_000)
    assert summary == Summary(rows=20_000, valid=20_000, size_bytes=len(data))
    assert 180 <= len(data) / 20_000 <= 220
    header, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
    assert header == ["id", "event_type", "source", "payload", "occurred_at", "amount", "status"]
    assert len({row[0] for row in rows}) == len(rows) == 20_000
    for row in rows:
        assert UUID.fullmatch(row[0])
        json.loads(row[3])
    assert any("\n" in row[3] for row in rows)
    assert any('\\"' in row[3] for row in rows)
    assert any(not row[1].isascii() or not row[2].isascii() for row in rows)
    assert any(row[5] == "" for row in rows)
    assert b',""\n' in data
    assert b",\n" in data


async def test_postgres_takes_every_valid_row(database: str) -> None:
    data, _ = _file(20_000)
    connection = await asyncpg.connect(database)
    try:
        await connection.copy_to_table("webhook_events", source=io.BytesIO(data), format="csv", header=True)
        assert await connection.fetchval("SELECT count(*) FROM webhook_events") == 20_000
        assert await connection.fetchval("SELECT count(*) FROM webhook_events WHERE status = ''") > 0
        assert await connection.fetchval("SELECT count(*) FROM webhook_events WHERE status IS NULL") > 0
    finally:
        await connection.close()


async def test_postgres_refuses_every_invalid_row(database: str) -> None:
    data, summary = _file(400, invalid=1.0)
    assert summary.valid == 0
    connection = await asyncpg.connect(database)
    try:
        for row in data.split(b"\n")[1:-1]:
            source = io.BytesIO(row + b"\n")
            with pytest.raises((asyncpg.DataError, asyncpg.NotNullViolationError)):
                await connection.copy_to_table("webhook_events", source=source, format="csv")
    finally:
        await connection.close()


def test_every_kind_of_invalid_row_has_its_share() -> None:
    data, summary = _file(20_000, invalid=0.01)
    assert summary.rows == summary.valid + sum(summary.invalid.values()) == 20_000
    assert summary.invalid == dict.fromkeys(KINDS, 25)
    assert data.count(b"\0") == 25
    with pytest.raises(UnicodeDecodeError):
        data.decode()


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        next(generate(1, invalid=1.5))


def test_the_command_writes_the_file_and_prints_the_summary(tmp_path: Path) -> None:
    target = tmp_path / "events.csv"
    command = [sys.executable, "-m", "bench.generate", "--rows", "6000", "--seed", "3", "--invalid", "0.5"]
    done = subprocess.run([*command, "-o", str(target)], check=True, capture_output=True)
    data, summary = _file(6000, seed=3, invalid=0.5)
    assert target.read_bytes() == data
    assert json.loads(done.stdout)["invalid"] == summary.invalid
    piped = subprocess.run([*command, "-o", "-"], check=True, capture_output=True)
    assert piped.stdout == data
