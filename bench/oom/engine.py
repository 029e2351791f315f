"""Docker, by its command and by the API of its engine."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from bench.oom.group import Group, Usage

ROOT: Final = Path(__file__).parent.parent.parent
#: Of the test alone: containers and volumes of whoever uses the same engine stay as they are.
PROJECT: Final = "stream-api-oom-test"
_STAND_INS: Final = "`make oom-test STAND_INS=1` brings what is missing, as root on Debian"


class OomTestFailed(Exception):
    """Something is not as it must be."""


def docker(*words: str, environment: Mapping[str, str] | None = None) -> str:
    """The output of a docker command.

    :raises OomTestFailed: with what it said, when it fails.
    """
    env = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(["docker", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    except OSError as exc:
        raise OomTestFailed(f"docker cannot be started: {exc.strerror}; {_STAND_INS}") from exc
    if done.returncode and ("unknown command" in done.stderr or "is not a docker command" in done.stderr):
        raise OomTestFailed(f"docker has no compose plugin; {_STAND_INS}")
    if done.returncode:
        raise OomTestFailed(f"docker {' '.join(words)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


_DEFAULTS: Final = {
    "POSTGRES_PASSWORD": "stream-api-dev",
    "REDIS_PASSWORD": "stream-api-dev",
    "MINIO_ROOT_USER": "stream-api",
    "MINIO_ROOT_PASSWORD": "stream-api-dev",
    "PUBLISH_ADDRESS": "127.0.0.1",
    "PUBLISH_PORT": "3002",
    "MINIO_PORT": "9000",
    "MINIO_CONSOLE_PORT": "9001",
    "WORKERS": "0",
}
# By TCP, as everybody else: the socket's place differs from image to image.
_PSQL: Final = (
    *("-e", "PGPASSWORD=stream-api-dev", "postgres", "psql", "--host=127.0.0.1"),
    *("--username=stream_api", "--dbname=stream_api", "-qtAX"),
)
_HOLD: Final = "BEGIN; LOCK TABLE {} IN SHARE MODE; SELECT pg_sleep(600)"
_IS_HELD: Final = "SELECT count(*) FROM pg_locks WHERE mode = 'ShareLock' AND granted AND relation = '{}'::regclass"
_RELEASE: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE query LIKE '%pg_sleep(600)' AND pid <> pg_backend_pid()"
)


class Project:
    """The stack of docker-compose.yml with what the test adds.

    :param environment: for the compose file.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        files = os.environ.get("COMPOSE_FILE", str(ROOT / "docker-compose.yml"))
        self._environment: Final = {
            # What a .env may say otherwise is not what the test knows of.
            **_DEFAULTS,
            **environment,
            "COMPOSE_FILE": f"{files}:{ROOT / 'deploy' / 'oom-test.yml'}",
            "COMPOSE_PROJECT_NAME": PROJECT,
        }

    def __call__(self, *words: str) -> str:
        """`docker compose WORDS`; its output.

        :raises OomTestFailed: when it fails.
        """
        return docker("compose", *words, environment=self._environment)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers that are or were there."""
        return self("ps", "--all", "--quiet", service).split()

    def sql(self, statement: str) -> str:
        """What Postgres answers, without decoration."""
        return self("exec", "-T", *_PSQL, "-c", statement).strip()

    @contextlib.contextmanager
    def holding(self, table: str) -> Iterator[None]:
        """Nobody can write into a table while the body runs; reading goes on."""
        command = ["docker", "compose", "exec", "-T", *_PSQL, "-c", _HOLD.format(table)]
        env = {**os.environ, **self._environment}
        holder = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while self.sql(_IS_HELD.format(table)) == "0":
                if holder.poll() is not None:
                    raise OomTestFailed(f"the table {table} cannot be locked")
            yield
        finally:
            self.sql(_RELEASE)
            holder.wait(timeout=60)

    def logs(self, service: str) -> dict[str, list[dict[str, Any]]]:
        """The JSON lines of each container of a service that is or was there, by its id."""
        events = {}
        for container in self.containers(service):
            done = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True)
            lines = (done.stdout + done.stderr).splitlines()
            events[container] = [json.loads(line) for line in lines if line.startswith("{")]
        return events


class Engine:
    """The API of the engine that the docker command talks to, by its socket."""

    def __init__(self) -> None:
        host = (
            os.environ.get("DOCKER_HOST")
            or docker("context", "inspect", "--format", "{{.Endpoints.docker.Host}}").strip()
        )
        scheme, _, path = host.partition("://")
        if scheme != "unix":
            raise OomTestFailed(f"the engine must be on this machine, with a socket, not at {host}")
        self._socket: Final = path
        self._groups: Final[dict[str, Group | None]] = {}

    def get(self, path: str) -> Any:
        """The JSON of a GET request.

        :raises OomTestFailed: when it is not answered by 200.
        """
        connection = http.client.HTTPConnection("localhost", timeout=30)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(30)
            connection.sock.connect(self._socket)
            connection.request("GET", f"/v1.41{path}")
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            raise OomTestFailed(f"the engine does not answer: {exc!r}") from exc
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise OomTestFailed(f"the engine answered {answer.status} to {path}: {body.decode(errors='replace')}")
        return json.loads(body)

    def usage(self, container: str) -> Usage:
        """What a container uses now: from its control group, or from the engine, which takes up to a second.

        :raises OomTestFailed: when it does not run.
        """
        if container not in self._groups:
            self._groups[container] = Group.of(self.state(container)["Pid"])
        group = self._groups[container]
        if group is None:
            return self._usage_by_api(container)
        try:
            return group.usage()
        except OSError as exc:
            raise OomTestFailed(f"the container {container[:12]} does not run") from exc

    def _usage_by_api(self, container: str) -> Usage:
        stats = self.get(f"/containers/{container}/stats?stream=false&one-shot=true")
        memory = stats["memory_stats"]
        if "usage" not in memory:
            raise OomTestFailed(f"the container {container[:12]} does not run")
        # By version 1 and 2 of control groups, as the docker command does it.
        cache = memory["stats"].get("total_inactive_file", memory["stats"].get("inactive_file", 0))
        top = self.get(f"/containers/{container}/top?ps_args={quote('-eo pid,rss')}")
        rss = sum(int(row[top["Titles"].index("RSS")]) for row in top["Processes"]) * 1024
        return Usage(memory["usage"], memory["usage"] - cache, rss, stats["cpu_stats"]["cpu_usage"]["total_usage"])

    def inspect(self, container: str) -> dict[str, Any]:
        """What docker inspect says."""
        inspected: dict[str, Any] = self.get(f"/containers/{container}/json")
        return inspected

    def state(self, container: str) -> dict[str, Any]:
        """`State` of docker inspect."""
        state: dict[str, Any] = self.inspect(container)["State"]
        return state


def peak_bytes(container: str) -> int | None:
    """The most that a container has used, as its control group has seen it; `None` where it does not say."""
    script = (
        "cat /sys/fs/cgroup/memory.peak 2>/dev/null || cat /sys/fs/cgroup/memory/memory.max_usage_in_bytes 2>/dev/null"
    )
    text = docker("exec", container, "sh", "-c", f"{script} || true").strip()
    return int(text) if text else None


def oom_kills(container: str) -> int:
    """How many processes the kernel has killed in a container for want of memory, as its control group counts."""
    script = "cat /sys/fs/cgroup/memory.events 2>/dev/null || cat /sys/fs/cgroup/memory/memory.oom_control 2>/dev/null"
    for line in docker("exec", container, "sh", "-c", script).splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    raise OomTestFailed("the control group does not say how many processes were killed")
