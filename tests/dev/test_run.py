from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from bench.generate import generate
from stream_api.dev.stack import Stack, StackInUse


@contextmanager
def _dev(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`stream-api dev` and its ready line."""
    command = [sys.executable, "-m", "stream_api", "dev", "--data-dir", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.terminate()


def _variables(folder: Path) -> dict[str, str]:
    """What a shell has after it sourced dev.env."""
    shell = subprocess.run(
        ["/bin/sh", "-c", f". {folder}/dev.env && env -0"], capture_output=True, check=True, text=True
    )
    return dict(line.split("=", 1) for line in shell.stdout.split("\0") if line)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_services_only_says_ready_and_stops_everything_on_a_signal(server_folder: Path, number: signal.Signals) -> None:
    folder = server_folder / f"dev-{number.name}"
    with _dev(folder, "--services-only") as (process, ready):
        assert ready == f"ready {folder}/dev.env\n"
        assert (folder / "dev.env").stat().st_mode & 0o077 == 0
        variables = _variables(folder)
        assert {"DATABASE_URL", "REDIS_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID"} <= variables.keys()
        assert variables["STREAM_API_PORT"] == "3002"
        assert variables["STREAM_API_WEBHOOK_ALLOW"] == "localhost,127.0.0.0/8,::1"
        process.send_signal(number)
        assert process.wait() == 0
    assert list(folder.glob("*/*.pid")) == []


async def test_a_killed_dev_leaves_a_folder_that_the_next_one_goes_on_with(server_folder: Path) -> None:
    folder = server_folder / "dev-killed"
    with _dev(folder, "--services-only") as (process, _):
        connection = await asyncpg.connect(_variables(folder)["DATABASE_URL"])
        await connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        await connection.close()
        process.kill()
    with _dev(folder, "--services-only") as (process, ready):
        assert ready.startswith("ready ")
        connection = await asyncpg.connect(_variables(folder)["DATABASE_URL"])
        assert await connection.fetchval("SELECT one FROM kept") == 1
        await connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


async def _load(base: str, rows: int, seed: int) -> dict[str, Any]:
    """Upload a generated file and return the status at the end of its load."""
    form = aiohttp.FormData()
    form.add_field("file", b"".join(generate(rows, seed=seed)), filename="events.csv", content_type="text/csv")
    async with aiohttp.ClientSession(base) as session:
        async with session.post("/upload", data=form) as answer:
            assert answer.status == 202
            uploaded = await answer.json()
        while True:
            async with session.get(uploaded["statusUrl"]) as answer:
                status: dict[str, Any] = await answer.json()
            if status["status"] not in {"uploaded", "processing"}:
                return status
            await asyncio.sleep(0.1)  # The status has to be asked for.


async def test_dev_runs_the_service_and_a_killed_dev_takes_it_along(server_folder: Path) -> None:
    folder = server_folder / "dev-service"
    with _dev(folder, "--port", "0") as (process, ready):
        word, _, first = ready.strip().partition(" ")
        assert word == "ready"
        assert first == f"http://127.0.0.1:{_variables(folder)['STREAM_API_PORT']}"
        status = await _load(first, 1000, seed=1)
        assert (status["status"], status["rowsProcessed"]) == ("completed", 1000)
        process.kill()
    with _dev(folder, "--port", "0") as (process, ready):
        second = ready.strip().removeprefix("ready ")
        status = await _load(second, 1000, seed=2)
        assert status["status"] == "completed"
        connection = await asyncpg.connect(_variables(folder)["DATABASE_URL"])
        assert await connection.fetchval("SELECT count(*) FROM webhook_events") == 2000
        await connection.close()
        # The first service has gone with the dev that started it.
        with pytest.raises(aiohttp.ClientConnectionError):
            await _load(first, 1, seed=3)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert list(folder.glob("*.pid")) == []


def test_a_folder_has_one_stack_at_a_time(server_folder: Path) -> None:
    folder = server_folder / "dev-twice"
    with Stack(folder, durable=False), pytest.raises(StackInUse, match="dev-twice"):
        Stack(folder).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands Postgres to another user")
def test_a_folder_that_nobody_can_reach_is_refused_in_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    command = [sys.executable, "-m", "stream_api", "dev", "--services-only", "--data-dir", str(tmp_path / "below")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nobody" in done.stderr
    assert "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr
