"""Workers that take, load, freeze, die and come back, all at once: every row is in the table once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from stream_api.errors import Failure, RunLost
from stream_api.ledger.errors import translated
from stream_api.ledger.segments import claim_segment, commit_segment
from stream_api.ledger.uploads import Ended
from tests.ledger.conftest import Loads, figures

SEGMENTS = 12
ROWS = 7  # in each segment


class Died(Exception):
    """The worker did, in the middle of something."""


class Worker:
    """Loads as a worker does, with two lanes, and with accidents."""

    def __init__(self, loads: Loads, upload_id: UUID, chance: random.Random) -> None:
        self._loads = loads
        self._upload_id = upload_id
        self._chance = chance
        #: Connections of workers that froze: still open, with whatever they hold.
        self.frozen: list[asyncpg.Connection[asyncpg.Record]] = []

    async def work(self) -> bool:
        """One run; whether the upload has ended."""
        taken = await self._loads.take_or_ended(self._upload_id, size_bytes=10 * SEGMENTS)
        if isinstance(taken, Ended):
            return True
        there = {segment.number for segment in taken.segments}
        numbers = [number for number in range(SEGMENTS) if number not in there]
        self._chance.shuffle(numbers)  # holes
        # When one lane dies the other goes on, as it does for a while in a process that has not noticed yet.
        lanes = [self._lane(taken.run, numbers[lane::2]) for lane in range(2)]
        for error in await asyncio.gather(*lanes, return_exceptions=True):
            if error is not None:
                raise error
        await self._loads.ledger.complete(self._upload_id, taken.run)
        return True

    async def _lane(self, run: int, numbers: list[int]) -> None:
        connection = await self._loads.lane(self._upload_id, run)
        try:
            for number in numbers:
                with translated(connection):
                    await self._segment(connection, run, number)
        except Died:
            if self._chance.random() < 0.5:
                connection.terminate()
            else:
                self.frozen.append(connection)
            raise
        except BaseException:
            connection.terminate()
            raise
        await connection.close()

    async def _segment(self, connection: asyncpg.Connection[asyncpg.Record], run: int, number: int) -> None:
        if await claim_segment(connection, self._upload_id, run, number):
            self._accident()
            await connection.copy_to_table("exact", source=self._rows(number), format="csv")
            self._accident()
            segment = figures(number, number * 10, (number + 1) * 10, rows=ROWS)
            await commit_segment(connection, self._upload_id, segment, "exact")
        self._accident()

    async def _rows(self, number: int) -> AsyncIterator[bytes]:
        for row in range(ROWS):
            yield f"{number},{row}\n".encode()
            await asyncio.sleep(0)

    def _accident(self) -> None:
        if self._chance.random() < 0.03:
            raise Died


@pytest.mark.parametrize("seed", range(4))
async def test_every_row_is_loaded_once(loads: Loads, upload_id: UUID, seed: int) -> None:
    chance = random.Random(seed)
    watcher = await asyncpg.connect(loads.settings.database_url.get_secret_value())
    await watcher.execute("CREATE TABLE exact (segment int, number int)")  # no key that would refuse a second row
    loads.table = "exact"
    frozen: list[asyncpg.Connection[asyncpg.Record]] = []

    async def workers() -> None:
        worker = Worker(loads, upload_id, random.Random(chance.random()))
        worker.frozen = frozen
        for tried in range(60):
            try:
                if await worker.work():
                    return
            except (Died, RunLost):
                pass
            except Failure as failure:
                if not failure.transient:
                    raise
            # Each taking ends the run of another. On a slow machine they leave one another more time by and by.
            await asyncio.sleep(chance.uniform(0, min(10.0, 0.1 * 1.1**tried)))
        pytest.fail("no end")

    await asyncio.gather(*(workers() for _ in range(3)))
    row = await loads.ledger.get(upload_id)
    assert row is not None
    assert (row.state, row.rows_inserted, row.segments) == ("completed", SEGMENTS * ROWS, SEGMENTS)
    found = await watcher.fetch("SELECT segment, number FROM exact ORDER BY 1, 2")
    assert [tuple(one) for one in found] == [(segment, row) for segment in range(SEGMENTS) for row in range(ROWS)]
    for connection in (*frozen, watcher):
        connection.terminate()
