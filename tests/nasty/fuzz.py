"""Damaged files, each loaded as a whole: `python -m tests.nasty.fuzz --runs 10000 --seed 7`.

A run is one file and its damage; both depend on the seed and the number of the run alone: `--seed 7 --only 31` repeats
run 31. Loads go into a real Postgres, in segments of some records; the object store is in memory, so that there is
time for many.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from unittest.mock import patch

import msgspec
import structlog
from backports import zstd
from pydantic import SecretStr

from stream_api.config import Settings
from stream_api.dev.postgres import Postgres
from stream_api.dialects.detection import HEAD_BYTES, detect
from stream_api.dialects.dialect import Dialect, Given
from stream_api.errors import Failure
from stream_api.load import source
from stream_api.storage.keys import PENDING_PREFIX
from tests.conftest import migrate_database
from tests.load.conftest import Loading, open_loading
from tests.nasty.guarantees import (
    COMPRESSION_CODES,
    HEADER_CODES,
    Found,
    check_records,
    check_sums,
    check_untouched,
    describe,
    read_file,
)
from tests.nasty.memory import MemoryStore
from tests.nasty.mutations import COLUMNS, Damage, File, damage, make_file
from tests.support.settings import change

#: Columns of the table of each lane of runs: binary COPY, a key, COPY of text, and a table that checks.
TABLES: Final = [
    "id int, name text, amount numeric(8,2), note text, day date, doc json",
    "id int PRIMARY KEY, name text, amount numeric(8,2), note text, day date, doc json",
    "id bigint, name text, amount numeric, note varchar, day date, doc json",
    "id int UNIQUE, name text, amount numeric(8,2) CHECK (amount >= 0), note text, day date, doc json",
]
_KEYED: Final = {1, 3}
#: Bytes that a record may have, in the same order.
LIMITS: Final = [1_000_000, 700, 1_000_000, 400]
_LANES: Final = [1, 2, 2, 1]
_DECOMPRESS: Final[dict[str | None, Callable[[bytes], bytes]]] = {
    None: bytes,
    "gzip": gzip.decompress,
    "zstd": zstd.decompress,
}
_HANGS_SECONDS: Final = 30.0
#: Runs between two reports.
_TOLD: Final = 500
_CHUNK_BYTES: Final = 777


@dataclass(frozen=True)
class Run:
    """A file, what was done to it, and how it is loaded."""

    number: int
    file: File
    damage: Damage
    stored: bytes
    segment_bytes: int
    in_stream: bool = False

    @classmethod
    def of(cls, seed: int, number: int) -> Run:
        """Everything about a run."""
        rng = random.Random(f"{seed}:{number}")
        file = make_file(rng)
        damaged = damage(rng, file)
        stored, in_stream = damaged.data, False
        if rng.random() < 0.15:
            stored = gzip.compress(stored, 1) if rng.random() < 0.5 else zstd.compress(stored)
            in_stream = rng.random() < 0.5
        if in_stream:
            at = rng.randrange(2, len(stored))
            stored = stored[:at] + rng.choice([b"", bytes([rng.randrange(256)])]) + stored[at + 1 :]
        segment = rng.choice([1, 60, 250, 250, 1000, 1000, 100_000])
        return cls(number, file, damaged, stored, segment, in_stream)


@dataclass
class Fuzz:
    """Runs on one database.

    :param states: how many loads ended how.
    :param codes: rejections by code.
    """

    seed: int
    states: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    done: int = 0
    rows: int = 0
    #: Runs whose damage has left the dialect as it was, so that untouched rows are asked after.
    compared: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    #: Told of each run that has failed, and of the number of runs from time to time.
    tell: Callable[[str], None] = lambda _: None

    async def work(self, loading: Loading, slot: int, numbers: list[int]) -> None:
        """Do the runs of this slot, one after another, into its table."""
        await loading.execute(f"CREATE TABLE fuzz_{slot} ({TABLES[slot]})")
        for number in (each for each in numbers if each % len(TABLES) == slot):
            run = Run.of(self.seed, number)
            try:
                async with asyncio.timeout(_HANGS_SECONDS):
                    await self._run(loading, slot, run)
            except Exception:  # noqa: BLE001 - all of them are told of
                self.failed[number] = (
                    f"segments of {run.segment_bytes}\n{traceback.format_exc()}\n{describe(run.file, run.damage)}"
                )
                self.tell(f"--- run {number}: {self.failed[number]}")
            self.done += 1
            if self.done % _TOLD == 0:
                self.tell(f"{self.done} runs, {len(self.failed)} of them failed")
            loading.statuses.records.clear()
            loading.pipelines.clear()
            loading.announced.clear()

    async def _run(self, loading: Loading, slot: int, run: Run) -> None:
        try:
            dialect = _found(run.stored)
        except Failure as failure:  # the upload is answered with that
            assert failure.code in COMPRESSION_CODES  # noqa: PT017
            self.states[f"refused: {failure.code}"] += 1
            return
        await loading.execute(f"DELETE FROM fuzz_{slot}")
        manifest = await loading.stored(run.stored, segment_bytes=run.segment_bytes, dialect=dialect)
        row = await loading.load(manifest)
        columns = ", ".join(f"{name}::text" for name in COLUMNS)
        rows = await loading.fetch(f"SELECT {columns} FROM fuzz_{slot}")
        found = Found(row, rows, await loading.rejects(manifest.upload_id))
        code = None if row.error is None else row.error["code"]
        self.states[row.state if code is None else f"failed: {code}"] += 1
        self.codes.update(each["code"] for each in found.rejects)
        self.rows += row.rows_read
        check_sums(found)
        if code is not None:
            in_header = any(start < len(run.file.header) for start, _, _ in run.damage.edits)
            allowed = HEADER_CODES if in_header or run.in_stream else set()
            assert code in allowed | (COMPRESSION_CODES if run.in_stream else set()), code
            return
        # Frames of zstd have no checksum of their own accord: what is damaged within one may be another text.
        data = _DECOMPRESS[dialect.compression](run.stored)
        read, keyed = read_file(data, dialect, LIMITS[slot]), slot in _KEYED
        check_records(found, read, keyed=keyed)
        if data == run.damage.data and msgspec.structs.replace(dialect, compression=None) == _found(run.file.data):
            refused = {int(each["byteOffset"]): each["code"] for each in found.rejects}
            check_untouched(rows, refused, run.file, run.damage, read, keyed=keyed)
            self.compared += 1


def _found(data: bytes) -> Dialect:
    """The dialect that is found for a file."""
    return detect(data[:HEAD_BYTES], whole=len(data) <= HEAD_BYTES, given=Given())


async def fuzz(settings: Settings, seed: int, numbers: list[int], tell: Callable[[str], None] = lambda _: None) -> Fuzz:
    """Do these runs.

    :param settings: of a migrated database.
    """
    made = Fuzz(seed, tell=tell)
    with patch.object(source, "CHUNK_BYTES", _CHUNK_BYTES):
        stores = [MemoryStore() for _ in TABLES]
        async with AsyncExitStack() as stack:
            slots = [
                await stack.enter_async_context(
                    open_loading(
                        change(
                            settings, target_table=f"fuzz_{slot}", max_record_bytes=LIMITS[slot], lanes=_LANES[slot]
                        ),
                        instead=store.as_store(),
                    )
                )
                for slot, store in enumerate(stores)
            ]
            async with asyncio.TaskGroup() as group:
                for slot, loading in enumerate(slots):
                    group.create_task(made.work(loading, slot, numbers[:]))
            assert await slots[0].lanes() == [], "sessions are left"
    assert not [key for store in stores for key in store.objects if key.startswith(PENDING_PREFIX)], "markers are left"
    return made


def _tell(what: str) -> None:
    print(what, flush=True)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", type=int, help="repeat this run")
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    numbers = list(range(args.runs)) if args.only is None else [args.only]
    folder = Path(tempfile.mkdtemp(prefix="stream-api-fuzz-"))
    folder.chmod(0o755)
    server = Postgres(folder / "postgres", durable=False)
    began = time.monotonic()
    try:
        server.start()
        migrate_database(server.dsn)
        made = asyncio.run(fuzz(Settings(database_url=SecretStr(server.dsn)), args.seed, numbers, _tell))
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(numbers)} runs in {time.monotonic() - began:.0f} s, seed {args.seed}: {made.rows} rows read")
    print(f"untouched rows asked after: {made.compared} runs")
    print("ends:", dict(made.states.most_common()))
    print("rejections:", dict(made.codes.most_common()))
    print(f"{len(made.failed)} runs failed: {sorted(made.failed)[:50]}")
    return bool(made.failed)


if __name__ == "__main__":
    sys.exit(_main())
