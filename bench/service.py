"""The service as a process of its own, under a memory limit where one is given."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from stream_api.dev.limits import MemoryLimit
from stream_api.dev.ports import find_port
from stream_api.dev.run import is_healthy
from stream_api.dev.server import spawn

#: What Python runs: the service as its users do.
PRODUCT: Final = ("-m", "stream_api")
_START_SECONDS: Final = 60.0


class ServiceFailed(Exception):
    """The service did not start, has ended, or does not answer as it must."""


class Service:
    """`stream-api serve`, with what it used.

    :param log: where it writes to.
    :param environment: the servers that it talks to, and its settings, beside our own environment.
    :param limit: what its memory is limited by.
    :param program: see `PRODUCT`. :param options: after `serve --port=…`.
    """

    def __init__(
        self,
        log: Path,
        environment: Mapping[str, str],
        limit: MemoryLimit | None = None,
        *,
        program: Sequence[str] = PRODUCT,
        options: Sequence[str] = (),
    ) -> None:
        self.port: Final = find_port()
        self.log: Final = log
        self.peak_rss_bytes: int | None = None
        self.peak_group_bytes: int | None = None
        self._limit: Final = limit or MemoryLimit(None, "none")
        command = [*self._limit.prefix, sys.executable, *program, "serve", f"--port={self.port}", *options]
        extra = {"STREAM_API_HOST": "127.0.0.1", "STREAM_API_LOG_FORMAT": "json"}
        self._process = spawn(command, log=log, environment={**environment, **extra}, cgroups=self._limit.cgroups)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def group(self) -> Path | None:
        """Folder of its control group, while it runs under a limit."""
        return self._limit.group(self.pid)

    def wait_until_healthy(self) -> None:
        """:raises ServiceFailed: when it ends instead, or does not answer within a minute."""
        deadline = time.monotonic() + _START_SECONDS
        while not is_healthy(self.port):
            self.sample()
            if time.monotonic() > deadline:
                msg = "the service did not answer within a minute"
                raise ServiceFailed(msg)
            time.sleep(0.1)

    def sample(self) -> None:
        """Look at the memory that it has used at most so far.

        :raises ServiceFailed: when it has ended.
        """
        if self._process.poll() is not None:
            code = self._process.returncode
            why = " (killed: out of memory?)" if code == -signal.SIGKILL else ""
            msg = f"the service ended with exit code {code}{why}"
            raise ServiceFailed(msg)
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM:"):
                    self.peak_rss_bytes = int(line.split()[1]) * 1024
        self.peak_group_bytes = self._limit.peak_bytes(self.pid) or self.peak_group_bytes

    def get(self, path: str) -> Any:
        """The JSON of a GET request.

        :raises ServiceFailed: when it is not answered by 200.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            msg = f"GET {path}: {exc!r}"
            raise ServiceFailed(msg) from exc
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            msg = f"GET {path} was answered by {answer.status}: {body.decode(errors='replace')}"
            raise ServiceFailed(msg)
        return json.loads(body)

    def stop(self) -> None:
        """End it as its operator would.

        :raises ServiceFailed: when it does not end in an orderly way.
        """
        if self._process.poll() is None:
            self._process.terminate()
        try:
            code = self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code:
            msg = f"the service ended with exit code {code}"
            raise ServiceFailed(msg)

    def log_end(self) -> str:
        """The last lines of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        return ""
