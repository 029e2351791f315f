"""Folders for the data of servers that live as long as some tests."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stream_api.config import MIB

#: Files in memory (Linux): every test makes a database, and that is 300 files.
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - `mkdtemp` makes what we use in it
#: What four workers use of it is less than half of this.
_ROOM_BYTES: Final = 6 * 1024 * MIB
_PREFIX: Final = "stream-api-tests-"


@contextmanager
def temporary_server_folder() -> Iterator[Path]:
    """A new folder, in memory where there is room, which is removed at the end.

    Not pytest's own, which user `nobody` (Postgres, when root) cannot enter.
    """
    memory = _MEMORY if _MEMORY.is_dir() else None
    if memory is not None:
        _remove_abandoned(memory)
        if shutil.disk_usage(memory).free < _ROOM_BYTES:
            memory = None
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=memory))
    folder.chmod(0o755)
    with _lock_of(folder).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _lock_of(folder: Path) -> Path:
    return folder / "lock"


def _remove_abandoned(memory: Path) -> None:
    """Remove what killed processes have left in memory. Their servers went with them, and so did their locks."""
    for folder in memory.glob(f"{_PREFIX}*"):
        try:
            with _lock_of(folder).open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # Somebody's, or about to be.
