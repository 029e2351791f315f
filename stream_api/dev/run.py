"""`stream-api dev`: the servers and the service on this machine, until a signal ends them."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import structlog

from stream_api import logs
from stream_api.config import Settings
from stream_api.datasets.file import datasets_of
from stream_api.dev.ports import find_port, is_free
from stream_api.dev.server import ServerFailed, end_orphan, remember, spawn
from stream_api.dev.stack import Stack, StoreName
from stream_api.ledger.migrate import migrate

_HOST: Final = "127.0.0.1"
#: Where the receivers of somebody who tries the service out listen.
_ALLOW: Final = "STREAM_API_WEBHOOK_ALLOW"
_LOOPBACK: Final = "localhost,127.0.0.0/8,::1"
_START_TIMEOUT_SECONDS: Final = 60.0
#: How often dead children are looked for.
_WATCH_SECONDS: Final = 0.2

log = structlog.get_logger(__name__)


def run(folder: Path, *, store: StoreName = "seaweedfs", port: int | None = None, services_only: bool = False) -> int:
    """Run the stack and return the exit code; for the main thread, since it handles SIGINT and SIGTERM.

    Writes `dev.env` into the folder and one line `ready …` to standard output.

    :param folder: where the servers keep their data.
    :param port: of the service: `STREAM_API_PORT` or 3002 unless given; 0 for a free one.
    :param services_only: start no service.
    :raises DatasetsInvalid: the file of datasets is not right.
    :raises ServerFailed: when a server, or the service, did not start.
    :raises StackInUse: when another stack runs on the folder.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    stack = Stack(folder, store=store, bucket=os.environ.get("STREAM_API_BUCKET", "stream-api"))
    with stack:
        # From here on this process and its children have the settings that dev.env gives to others.
        os.environ.update(stack.environment())
        os.environ.setdefault(_ALLOW, _LOOPBACK)
        settings = Settings() if port is None else Settings(port=port)
        logs.configure(settings.log_format, settings.log_level)
        datasets_of(settings)  # the service would refuse to start as well, less plainly
        asyncio.run(migrate(settings))
        chosen = settings.port or find_port()
        environment = stack.write_environment(
            extra={"STREAM_API_HOST": _HOST, "STREAM_API_PORT": str(chosen), _ALLOW: os.environ[_ALLOW]}
        )
        if services_only:
            print(f"ready {environment}", flush=True)
            return _watch(stack, None, ended)
        service_file = stack.folder / "service.pid"
        end_orphan(service_file, signal.SIGTERM, settings.shutdown_timeout_seconds + 10)
        if not is_free(chosen):
            msg = f"port {chosen} of {_HOST} is taken: choose another by --port, or --port 0 for any free one"
            raise ServerFailed(msg)
        service = spawn([sys.executable, "-m", "stream_api", "serve", "--host", _HOST, "--port", str(chosen)])
        remember(service_file, service.pid)
        try:
            _wait_until_healthy(service, chosen, ended)
            if not ended.is_set():
                print(f"ready http://{_HOST}:{chosen}", flush=True)
            return _watch(stack, service, ended)
        finally:
            _end(service, settings.shutdown_timeout_seconds)
            service_file.unlink(missing_ok=True)


def _watch(stack: Stack, service: subprocess.Popen[bytes] | None, ended: threading.Event) -> int:
    """Wait for a signal (0), or for one of the children to end by itself (1)."""
    while not ended.wait(_WATCH_SECONDS):
        for server in stack.servers:
            if not server.running:
                log.error("dev.server_ended", server=server.name, log=str(server.log))
                return 1
        if service is not None and service.poll() is not None:
            log.error("dev.service_ended", exit_code=service.returncode)
            return 1
    return 0


def _wait_until_healthy(service: subprocess.Popen[bytes], port: int, ended: threading.Event) -> None:
    tries = int(_START_TIMEOUT_SECONDS / _WATCH_SECONDS)
    for _ in range(tries):
        if service.poll() is not None:
            msg = f"the service ended with exit code {service.returncode} while it started"
            raise ServerFailed(msg)
        if is_healthy(port) or ended.wait(_WATCH_SECONDS):
            return
    msg = f"the service did not answer on port {port} within {_START_TIMEOUT_SECONDS:.0f} s"
    raise ServerFailed(msg)


def is_healthy(port: int) -> bool:
    """Whether `/healthz` answers 200 on a port of 127.0.0.1. Blocks for 5 seconds at most."""
    connection = http.client.HTTPConnection(_HOST, port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(service: subprocess.Popen[bytes], timeout_seconds: float) -> None:
    if service.poll() is None:
        service.terminate()
    try:
        # Its own limit, and some time for what comes after.
        service.wait(timeout_seconds + 10)
    except subprocess.TimeoutExpired:
        log.warning("dev.service_killed", timeout_seconds=timeout_seconds)
        service.kill()
        service.wait()
