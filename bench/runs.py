"""One load, one copy by psql, one pgloader: what the figures compare. Each empties the table and counts its rows."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from bench.client import Accepted
from bench.frame import BenchFailed
from bench.stand import File, Running, Stand, find_psql
from bench.tables import Table

#: What libpq reads from the environment, by the parameter of a URL.
_PARAMETERS = {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "host": "PGHOST", "port": "PGPORT"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A load that has completed, with every row.

    :param seconds: from the answer 202 until its end was known to a client that waited for it.
    :param whole_seconds: with the upload before it.
    :param peak_rss_bytes: of the service, from its start.
    """

    rows: int
    seconds: float
    whole_seconds: float
    peak_rss_bytes: int

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


async def load_once(stand: Stand, file: File, target: str, **settings: object) -> Loaded:
    """A load by a service that was just started: its connections are not open yet, as psql's are not.

    :param settings: of the service.
    :raises BenchFailed: when not every row is loaded.
    """
    await stand.empty(target)
    async with stand.running({"target_table": target, **settings}) as running:
        accepted = await running.client.upload(file.path)
        seconds = await finish(running, accepted, file.rows)
        await asyncio.to_thread(running.service.sample)
        peak = running.service.peak_rss_bytes or 0
    await _check(stand, target, file)
    return Loaded(file.rows, seconds, seconds + accepted.seconds, peak)


async def finish(running: Running, accepted: Accepted, rows: int) -> float:
    """Wait for the end of a load; the seconds since the answer 202.

    :raises BenchFailed: when not every row is loaded.
    """
    status = await running.client.end(accepted.upload_id)
    seconds = time.monotonic() - accepted.at
    if status["rowsProcessed"] != rows:
        msg = f"{status['rowsProcessed']} rows of {rows} were loaded: {status['rejected']} {status['rejects'][:1]}"
        raise BenchFailed(msg)
    return seconds


async def copy_once(
    stand: Stand, file: File, target: str, *, columns: str, binary: bool = False, dsn: str | None = None
) -> float:
    """A copy of the file by psql, from the start of psql to its end; in seconds.

    :param columns: of the file. :param binary: the file is in the binary format, see `binary_file`.
    :param dsn: of another way to the database.
    """
    await stand.empty(target)
    form = "format binary" if binary else "format csv, header"
    began = time.monotonic()
    await psql(rf"\copy {target} ({columns}) from '{file.path}' with ({form})", dsn or stand.dsn)
    seconds = time.monotonic() - began
    await _check(stand, target, file)
    return seconds


async def binary_file(stand: Stand, file: File, target: str, *, columns: str) -> File:
    """The rows of a file in Postgres' binary format, written by Postgres itself; leaves them in the table."""
    await copy_once(stand, file, target, columns=columns)
    path = file.path.with_suffix(".binary")
    await psql(rf"\copy {target} ({columns}) to '{path}' with (format binary)", stand.dsn)
    return File(path, file.rows, path.stat().st_size)


async def psql(command: str, dsn: str) -> None:
    """Run one command of psql.

    :raises BenchFailed: when it fails.
    """
    # Credentials go by the environment: arguments can be seen by everybody.
    process = await asyncio.create_subprocess_exec(
        str(find_psql()), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", command,
        env={**os.environ, **_environment(dsn)}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    if process.returncode:
        msg = f"psql ended with {process.returncode}: {errors.decode(errors='replace')}"
        raise BenchFailed(msg)


def has_pgloader() -> bool:
    """Whether pgloader is installed."""
    return shutil.which("pgloader") is not None


async def pgloader_once(stand: Stand, file: File, table: Table, folder: Path, *, keyed: bool) -> float:
    """A pgloader of the file with its own defaults, from its start to its end; in seconds.

    :param folder: for its command file and what it writes beside.
    :raises BenchFailed: when it fails, or does not load every row.
    """
    target = table.target(keyed=keyed)
    await stand.empty(target)
    names = ", ".join(name for name, _ in table.columns)
    await asyncio.to_thread(_write_commands, folder / "pgloader.load", file, target, names, stand.dsn)
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        str(shutil.which("pgloader")), "--root-dir", str(folder / "pgloader"), str(folder / "pgloader.load"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    seconds = time.monotonic() - began
    if process.returncode:
        msg = f"pgloader ended with {process.returncode}: {output.decode(errors='replace')[-1000:]}"
        raise BenchFailed(msg)
    await _check(stand, target, file)
    return seconds


def _write_commands(path: Path, file: File, target: str, names: str, dsn: str) -> None:
    path.touch(mode=0o600)
    path.write_text(
        f"LOAD CSV FROM '{file.path}' ({names})\n"
        f"INTO {dsn}\nTARGET TABLE {target} ({names})\n"
        "WITH skip header = 1, fields optionally enclosed by '\"', fields escaped by double-quote,\n"
        "  fields terminated by ',';\n",
        encoding="utf-8",
    )


def _environment(dsn: str) -> dict[str, str]:
    parts = urlsplit(dsn)
    found = {
        "PGHOST": parts.hostname or "",
        "PGPORT": str(parts.port or ""),
        "PGUSER": unquote(parts.username or ""),
        "PGPASSWORD": unquote(parts.password or ""),
        "PGDATABASE": unquote(parts.path.lstrip("/")),
    }
    found |= {_PARAMETERS[name]: value for name, value in parse_qsl(parts.query) if name in _PARAMETERS}
    return {name: value for name, value in found.items() if value}


async def _check(stand: Stand, target: str, file: File) -> None:
    count = await stand.value(f"SELECT count(*) FROM {target}")
    if count != file.rows:
        msg = f"{target} has {count} rows of {file.rows}"
        raise BenchFailed(msg)
