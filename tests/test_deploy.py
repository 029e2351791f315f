"""The container's scripts, and that the compose file speaks of settings that exist."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from stream_api.config import MIB, Settings
from stream_api.memory import MemoryLimitTooLow, fit, memory_need
from tests.conftest import Bucket

ROOT = Path(__file__).parent.parent


def _names() -> set[str]:
    """Every environment variable that is a setting."""
    return {
        str(field.validation_alias or f"STREAM_API_{name.upper()}") for name, field in Settings.model_fields.items()
    }


def test_every_setting_of_the_compose_file_exists() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    block = text[text.index("environment: &settings") : text.index("read_only:")]
    names = set(re.findall(r"^    ([A-Z0-9_]+):", block, re.MULTILINE))
    assert len(names) > 8
    assert names <= _names()
    assert ":${PUBLISH_PORT:-3002}:3002" in text
    assert Settings.model_fields["port"].default == 3002


def test_create_bucket_makes_it_and_minds_no_second_time(bucket_each_store: Bucket) -> None:
    store = bucket_each_store.store
    environment = {
        "AWS_ENDPOINT_URL_S3": store.endpoint_url,
        "AWS_ACCESS_KEY_ID": store.access_key_id,
        "AWS_SECRET_ACCESS_KEY": store.secret_access_key,
        "STREAM_API_BUCKET": f"{bucket_each_store.name}-made",
    }
    command = [sys.executable, str(ROOT / "deploy" / "create_bucket.py")]
    for _ in range(2):
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    assert store.keys(f"{bucket_each_store.name}-made") == []
    store.remove_bucket(f"{bucket_each_store.name}-made")
    refused = subprocess.run(
        command, env=os.environ | environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}, capture_output=True, check=False
    )
    assert refused.returncode == 1


def test_every_setting_of_kubernetes_and_of_the_documentation_exists() -> None:
    config = (ROOT / "deploy" / "kubernetes" / "base" / "config.yaml").read_text()
    names = set(re.findall(r"^  ([A-Z0-9_]+):", config, re.MULTILINE))
    assert len(names) > 4
    assert names <= _names()
    named = set(re.findall(r"\bSTREAM_API_[A-Z0-9_]+", (ROOT / "docs" / "deploy.md").read_text()))
    assert len(named) > 8
    assert named <= _names()


@pytest.mark.parametrize(
    ("process", "role"),
    [
        ("serve", {"api": True, "worker": True}),
        ("serve --no-worker", {"api": True, "worker": False}),
        ("worker", {"api": False, "worker": True}),
    ],
)
def test_the_documentation_says_what_each_process_needs(process: str, role: dict[str, bool]) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    ((needs, enough, least),) = re.findall(
        rf"^\| `{process}` \| ([0-9]+) MiB \| ([0-9]+) MiB \| ([0-9]+) MiB \|", text, re.MULTILINE
    )
    assert int(needs) == round(memory_need(Settings(), **role).total / MIB)

    def fitted(megabytes: int) -> Settings:
        return fit(Settings(memory_limit_bytes=megabytes * MIB), **role)

    def is_default(settings: Settings) -> bool:
        return all(value == getattr(Settings(), name) for name, value in settings if name != "memory_limit_bytes")

    assert is_default(fitted(int(enough)))
    assert not is_default(fitted(int(enough) - 1))
    fitted(int(least))
    with pytest.raises(MemoryLimitTooLow):
        fitted(int(least) - 1)


@pytest.mark.parametrize(("question", "path"), [([], "/healthz"), (["live"], "/healthz"), (["ready"], "/readyz")])
@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
async def test_the_health_check_asks_whether_it_lives_or_is_ready(
    question: list[str], path: str, status: int, code: int
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get(path, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    command = [sys.executable, "-I", "-S", str(ROOT / "deploy" / "healthcheck.py"), *question]
    child = await asyncio.create_subprocess_exec(*command, env={"STREAM_API_PORT": str(port)})
    assert await child.wait() == code
    await runner.cleanup()
    child = await asyncio.create_subprocess_exec(*command, env={"STREAM_API_PORT": str(port)})
    assert await child.wait() == 1


def test_the_health_check_knows_two_questions() -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / "deploy" / "healthcheck.py"), "well"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "healthcheck: live or ready, not well\n")
