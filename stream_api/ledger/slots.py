"""How many loads of one dataset run at once, over all workers: slots, each an advisory lock of a load's first lane.

A lock lives as long as its session, so a worker that dies frees its slot by dying. One that is frozen holds it, until
its successor ends its sessions, as it does to take the load: so that comes first here, before a slot is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from stream_api.config import Settings
from stream_api.errors import Failure, RunLost
from stream_api.ledger.errors import translated
from stream_api.ledger.pool import LaneConnection, Pool, connect_lane, disconnect, lane_name, using
from stream_api.ledger.rows import ENDED
from stream_api.ledger.uploads import end_sessions

_LOOK: Final = "SELECT state, run FROM stream_api.uploads WHERE id = $1"
# Evaluated row by row, and the LIMIT ends it at the first lock that is had: nothing sorts a function scan.
_TRY: Final = "SELECT slot FROM generate_series(0, $2 - 1) AS slot WHERE pg_try_advisory_lock($1, slot) LIMIT 1"
# Of locks with two keys (objsubid 2) the first one is in `classid`.
_HELD: Final = """
SELECT count(*) FROM pg_locks
WHERE locktype = 'advisory' AND classid = $1::oid AND objid < $2::oid AND objsubid = 2 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_RENAME: Final = "SELECT set_config('application_name', $1, false)"


class Slots:
    """The slots of all datasets, `dataset_concurrency` each; with 0 there is no bound, and nothing is asked.

    :param pool: of `open_pool`; stays the caller's.
    """

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self._settings = settings
        self._pool = pool

    @asynccontextmanager
    async def hold(
        self, upload_id: UUID, dataset: str, *, only_run: int | None = None
    ) -> AsyncIterator[LaneConnection | None]:
        """Hold a slot for a load that is about to be taken. Its run is not raised by that.

        Yields the connection that holds it, to be the first lane once `name_after` was called; `None` where there is
        no bound, or nothing to load.

        :param only_run: as for `Ledger.take`.
        :raises RunLost: with `only_run`, when another run was taken.
        :raises Failure: `dataset_busy` (transient) when all slots are in use; `database_unavailable`,
            `database_refused`.
        """
        count = self._settings.dataset_concurrency
        if not count:
            yield None
            return
        key = _key(dataset)
        async with using(self._pool) as connection:
            seen = await connection.fetchrow(_LOOK, upload_id)
            ended = seen is not None and seen["state"] in ENDED
            run = 0 if seen is None else seen["run"]
            if not ended:
                if only_run is not None and run != only_run:
                    raise RunLost(f"run {only_run} of upload {upload_id} is over")
                # The next one too: of a worker that froze after it had got its slot and before it took the load.
                await end_sessions(connection, upload_id, run + 1)
                # Cheaper than a connection for each load that waits.
                if await connection.fetchval(_HELD, key, count) >= count:
                    raise _busy(dataset, count)
        if ended:
            yield None
            return
        lane = await connect_lane(self._settings, upload_id, run + 1)
        try:
            with translated(lane):
                slot = await lane.fetchval(_TRY, key, count, timeout=self._settings.database_command_timeout_seconds)
            if slot is None:
                raise _busy(dataset, count)
            yield lane
        finally:
            await disconnect(lane)


async def name_after(connection: LaneConnection, upload_id: UUID, run: int) -> None:
    """Let the connection that holds the slot have the name of a lane of this run, now that it was taken.

    :raises Failure: `database_unavailable`, `database_refused`.
    """
    with translated(connection):
        await connection.fetchval(_RENAME, lane_name(upload_id, run), timeout=10)


def _busy(dataset: str, count: int) -> Failure:
    detail = f"{count} loads into the dataset {dataset} run already (STREAM_API_DATASET_CONCURRENCY)"
    return Failure("dataset_busy", detail, dataset=dataset)


def _key(dataset: str) -> int:
    """The first key of the dataset's locks: from 0 to 2^31 - 1, so that it is the same in `pg_locks`.

    Datasets whose keys meet, one pair in two thousand millions, share their slots.
    """
    digest = hashlib.blake2b(f"stream-api:{dataset}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") & 0x7FFF_FFFF
