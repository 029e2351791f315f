from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import pytest
from pydantic import SecretStr

from stream_api.config import Settings
from stream_api.ledger.pool import connect_lane, open_pool
from stream_api.ledger.rows import Intake
from stream_api.ledger.segments import SegmentFigures, claim_segment, commit_segment
from stream_api.ledger.uploads import Ended, Ledger, Taken

CREATED_AT = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)


def figures(
    number: int, start: int, end: int, *, rows: int = 0, rejected: dict[str, int] | None = None
) -> SegmentFigures:
    rejected = rejected or {}
    return SegmentFigures(
        number=number,
        start=start,
        end=end,
        first_line=number + 1,
        lines=rows,
        rows_read=rows + sum(rejected.values()),
        rows_inserted=rows,
        rejected=rejected,
    )


@dataclass
class Loads:
    """A ledger, and what tests do to it again and again."""

    settings: Settings
    ledger: Ledger
    table: str = "webhook_events"

    async def take_or_ended(self, upload_id: UUID, *, size_bytes: int = 100, table: str | None = None) -> Taken | Ended:
        return await self.ledger.take(self.intake(upload_id, size_bytes=size_bytes, table=table))

    def intake(
        self, upload_id: UUID, *, size_bytes: int = 100, table: str | None = None, callback_url: str | None = None
    ) -> Intake:
        return Intake(
            upload_id=upload_id,
            dataset="webhook_events",
            table=table or self.table,
            size_bytes=size_bytes,
            segment_bytes=10,
            callback_url=callback_url,
            created_at=CREATED_AT,
        )

    async def take(self, upload_id: UUID, *, size_bytes: int = 100, table: str | None = None) -> Taken:
        taken = await self.take_or_ended(upload_id, size_bytes=size_bytes, table=table)
        assert isinstance(taken, Taken)
        return taken

    async def lane(self, upload_id: UUID, run: int) -> asyncpg.Connection[asyncpg.Record]:
        return await connect_lane(self.settings, upload_id, run)

    async def load(self, upload_id: UUID, run: int, *segments: SegmentFigures, table: str = "webhook_events") -> None:
        """Commit segments without any COPY."""
        lane = await self.lane(upload_id, run)
        try:
            for segment in segments:
                assert await claim_segment(lane, upload_id, run, segment.number)
                await commit_segment(lane, upload_id, segment, table)
        finally:
            await lane.close()


@pytest.fixture
def database_settings(database: str) -> Settings:
    return Settings(database_url=SecretStr(database))


@pytest.fixture
async def loads(database_settings: Settings) -> AsyncIterator[Loads]:
    pool = await open_pool(database_settings)
    yield Loads(database_settings, Ledger(pool))
    await pool.close()


@pytest.fixture
def upload_id() -> UUID:
    return uuid4()
