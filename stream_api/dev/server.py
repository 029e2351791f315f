"""What the embedded servers have in common: a process, its ports, its readiness, its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Final

from stream_api.dev.ports import find_port, is_free

_LAUNCHER: Final = Path(__file__).with_name("launch.py")
#: PR_SET_PDEATHSIG looks at the *thread* that forked, so every child is forked by this one, which lives as long as
#: the process; a child started from a passing thread of a pool would be killed when that thread goes.
_FORKER: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forker")


class ServerFailed(Exception):
    """A server did not start; the message says which and shows the end of its log."""


class NotReady(Exception):
    """A probe found the server not serving yet."""


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    death_signal: signal.Signals = signal.SIGTERM,
    user: str | None = None,
    cgroups: Sequence[Path] = (),
) -> subprocess.Popen[bytes]:
    """Start a program that ends with this process, in a session of its own (so that Ctrl-C is ours to pass on).

    :param command: an absolute path and its arguments.
    :param log: gets standard output and error; inherited when unset.
    :param environment: added to ours.
    :param death_signal: what the program gets should this process end without stopping it (Linux only).
    :param user: the user to become, for root only.
    :param cgroups: `cgroup.procs` files to join.
    """
    options = [f"--parent={os.getpid()}", f"--death-signal={int(death_signal)}"]
    options += [f"--user={user}"] if user is not None else []
    options += [f"--cgroup={path}" for path in cgroups]
    # The launcher runs as the interpreter itself, not the venv's link to it: it needs nothing installed.
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), *options, "--", *(str(word) for word in command)]

    def fork() -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as stack:
            output = None if log is None else stack.enter_context(log.open("ab"))
            return subprocess.Popen(
                launcher,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    return _FORKER.submit(fork).result()


class Server(ABC):
    """One server process on 127.0.0.1 with its data in a folder of its own.

    Its methods block: from a coroutine call them by `asyncio.to_thread`. After `kill` and `stop`, `start` brings it
    back on the same port with the same data.

    :param folder: holds the data, the log and the process id; made where missing.
    :param port: the first port; a free one when unset.
    """

    name: ClassVar[str]
    #: Ends the server in an orderly way.
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    #: Every port that is used, relative to the first one.
    port_offsets: ClassVar[tuple[int, ...]] = (0,)
    start_timeout_seconds: ClassVar[float] = 60.0
    stop_timeout_seconds: ClassVar[float] = 30.0

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder: Final = folder
        self.host: Final = "127.0.0.1"
        self._chosen = port is not None
        self.port = self._last_port() if port is None else port
        self._process: subprocess.Popen[bytes] | None = None

    # -- what a server is ------------------------------------------------------------------------------------

    @abstractmethod
    def command(self) -> list[str | Path]:
        """The program and its arguments."""

    @abstractmethod
    def probe(self) -> None:
        """Do a real operation; raise `NotReady` when the server does not serve yet."""

    def prepare(self) -> None:  # noqa: B027 - not every server needs it
        """Make what the program needs before its start."""

    def environment(self) -> dict[str, str]:
        """Environment variables of the program, beside ours."""
        return {}

    def user(self) -> str | None:
        """The user that the program runs as, when it is not ours."""
        return None

    # -- its life --------------------------------------------------------------------------------------------

    @property
    def log(self) -> Path:
        """Where the server's output goes."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """Process id; `RuntimeError` when it has not been started."""
        if self._process is None:
            msg = f"{self.name} is not running"
            raise RuntimeError(msg)
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there (it may be frozen)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it serves.

        :raises ServerFailed: when it ended, or did not serve within `start_timeout_seconds`.
        """
        if self.running:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        end_orphan(self._pid_file, self.stop_signal, self.stop_timeout_seconds)
        self.prepare()
        attempts = 3
        for attempt in range(1, attempts + 1):
            self._process = spawn(
                self.command(),
                log=self.log,
                environment=self.environment(),
                death_signal=self.stop_signal,
                user=self.user(),
            )
            remember(self._pid_file, self._process.pid)
            try:
                self._wait_until_ready()
            except ServerFailed:
                self.kill()
                # Somebody else may have taken a port between our look and the start.
                if self._chosen or attempt == attempts or all(map(is_free, self._ports)):
                    raise
                self.port = find_port(self.port_offsets)
            else:
                self._port_file.write_text(f"{self.port}\n", encoding="ascii")
                return

    def stop(self) -> None:
        """End the server in an orderly way; by force when that takes longer than `stop_timeout_seconds`."""
        if self._process is None:
            return
        if self.running:
            self.thaw()
            self._process.send_signal(self.stop_signal)
        self._join(self.stop_timeout_seconds)

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._join(self.stop_timeout_seconds)

    def restart(self) -> None:
        """Kill it and start it again, with the same port and data."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop it from running (SIGSTOP): connections stay and nothing answers. Child processes go on."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """End a `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    # -- within ----------------------------------------------------------------------------------------------

    @property
    def _ports(self) -> list[int]:
        return [self.port + offset for offset in self.port_offsets]

    @property
    def _pid_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    @property
    def _port_file(self) -> Path:
        return self.folder / f"{self.name}.port"

    def _last_port(self) -> int:
        """The port of last time where it is still free (data and clients may know it), else another."""
        with contextlib.suppress(OSError, ValueError):
            port = int(self._port_file.read_text(encoding="ascii"))
            if all(is_free(port + offset) for offset in self.port_offsets):
                return port
        return find_port(self.port_offsets)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout_seconds
        while self.running:
            try:
                self.probe()
            except NotReady as exc:
                if time.monotonic() > deadline:
                    msg = f"{self.name} did not serve within {self.start_timeout_seconds:.0f} s\n{self._log_end()}"
                    raise ServerFailed(msg) from exc
                time.sleep(0.02)
            else:
                return
        msg = f"{self.name} ended while it started\n{self._log_end()}"
        raise ServerFailed(msg)

    def _log_end(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join([f"-- {self.log}", *lines[-15:]])

    def _join(self, timeout_seconds: float) -> None:
        process = self._process
        if process is None:
            return
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None
        self._pid_file.unlink(missing_ok=True)


def remember(pid_file: Path, pid: int) -> None:
    """Note a process for `end_orphan`."""
    pid_file.write_text(f"{pid} {_started(pid)}\n", encoding="ascii")


def end_orphan(pid_file: Path, stop_signal: signal.Signals, timeout_seconds: float) -> None:
    """End a process that a killed parent left behind, and wait until it is gone.

    A stale file of a process that is long gone is removed, also where its number belongs to another process by now.

    :param timeout_seconds: after this long it is killed.
    """
    try:
        pid, started = map(int, pid_file.read_text(encoding="ascii").split())
    except (FileNotFoundError, ValueError):
        return
    deadline = time.monotonic() + timeout_seconds
    sent: signal.Signals | None = None
    # The start time tells the process from another that got its number since.
    while started and _started(pid) == started:
        wanted = stop_signal if time.monotonic() < deadline else signal.SIGKILL
        if sent is not wanted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, wanted)
            sent = wanted
        time.sleep(0.02)
    pid_file.unlink(missing_ok=True)


def _started(pid: int) -> int:
    """When a process was started, in clock ticks since boot; 0 where it is gone (or there is no /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # The program's name is in parentheses and may hold anything; state and the rest follow the last one.
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])
