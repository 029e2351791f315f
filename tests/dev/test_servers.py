from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
import redis

from stream_api.config import Settings
from stream_api.dev.postgres import Postgres
from stream_api.dev.server import spawn
from stream_api.dev.stores import SeaweedFS, Store
from stream_api.dev.valkey import Valkey
from tests.conftest import Bucket


async def test_postgres_keeps_committed_rows_through_a_kill(own_postgres: Postgres) -> None:
    connection = await asyncpg.connect(own_postgres.dsn)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await connection.close()
    port = own_postgres.port

    await asyncio.to_thread(own_postgres.restart)

    assert own_postgres.port == port
    connection = await asyncpg.connect(own_postgres.dsn)
    assert await connection.fetchval("SELECT answer FROM kept") == 42
    await connection.close()


def test_valkey_keeps_keys_through_a_kill_and_wants_its_password(own_redis: Valkey) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.set("kept", "1")
        client.waitaof(1, 0, 10_000)  # "everysec" may hold back the write itself while an fsync runs
    own_redis.restart()
    with redis.Redis.from_url(own_redis.url) as client:
        assert client.get("kept") == b"1"
    with redis.Redis(port=own_redis.port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_seaweedfs_keeps_buckets_through_a_kill(own_s3: SeaweedFS) -> None:
    own_s3.create_bucket("kept")
    own_s3.restart()
    assert own_s3.keys("kept") == []


def test_a_bucket_can_be_made_twice_and_removed_with_what_is_in_it(s3_server: Store, bucket_each_store: Bucket) -> None:
    s3_server.create_bucket(bucket_each_store.name)
    with s3_server._client() as client:
        client.put_object(Bucket=bucket_each_store.name, Key="a/b", Body=b"1")
        client.create_multipart_upload(Bucket=bucket_each_store.name, Key="c")
    assert bucket_each_store.keys() == ["a/b"]
    assert bucket_each_store.open_multipart_uploads() == ["c"]


def test_a_frozen_server_goes_on_after_thaw(own_redis: Valkey) -> None:
    own_redis.freeze()
    with redis.Redis.from_url(own_redis.url, socket_timeout=0.1, retry=None) as client:
        with pytest.raises(redis.TimeoutError):
            client.ping()
        own_redis.thaw()
        assert client.ping()


def test_a_server_left_by_a_killed_parent_is_ended_and_its_data_taken_over(own_redis: Valkey) -> None:
    with redis.Redis.from_url(own_redis.url) as client:
        client.set("kept", "1")
    second = Valkey(own_redis.folder)
    second.start()
    try:
        assert not own_redis.running
        with redis.Redis.from_url(second.url) as client:
            assert client.get("kept") == b"1"
    finally:
        second.stop()


def test_a_pid_file_of_another_process_is_ignored(own_redis: Valkey) -> None:
    own_redis.stop()
    (own_redis.folder / "valkey.pid").write_text(f"{os.getpid()} 12345\n")
    own_redis.start()
    assert own_redis.running


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    program = (
        "import sys; from pathlib import Path; from stream_api.dev.server import spawn\n"
        "child = spawn(['/bin/sh', '-c', f'exec sleep 600 > {sys.argv[1]}']); child.wait()"
    )
    # Opening waits for the writer, and the read ends when nobody has it open any more.
    with subprocess.Popen([sys.executable, "-c", program, str(fifo)]) as parent, fifo.open("rb") as alive:
        parent.kill()
        assert alive.read() == b""
    assert parent.returncode == -signal.SIGKILL


def test_spawn_adds_to_the_environment_and_logs(tmp_path: Path) -> None:
    child = spawn(["/bin/sh", "-c", "echo $GREETING; exit 3"], log=tmp_path / "log", environment={"GREETING": "hello"})
    assert child.wait() == 3
    assert (tmp_path / "log").read_text() == "hello\n"


def test_settings_name_what_runs(settings: Settings, postgres: Postgres, bucket: Bucket) -> None:
    assert settings.database_host == f"127.0.0.1:{postgres.port}"
    assert settings.bucket == bucket.name
    assert bucket.keys() == []
