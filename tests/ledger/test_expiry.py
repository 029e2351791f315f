"""Expiry: only what has ended long ago, and never again after that."""

from __future__ import annotations

from uuid import UUID, uuid4

import asyncpg
import pytest

from stream_api.errors import Failure
from stream_api.ledger.expiry import Expired, Expiry
from stream_api.ledger.uploads import Ended
from tests.ledger.conftest import CREATED_AT, Loads, figures

WEEK = 7 * 24 * 3600.0


async def failed(loads: Loads, *, days: float) -> UUID:
    upload_id = uuid4()
    await loads.take(upload_id)
    await loads.load(upload_id, 1, figures(0, 0, 40, rows=4))
    await loads.ledger.fail(upload_id, 1, code="internal_error", message="x")
    connection = await asyncpg.connect(loads.settings.database_url.get_secret_value())
    await connection.execute(
        "UPDATE stream_api.uploads SET ended_at = now() - $2::float8 * interval '1 day' WHERE id = $1", upload_id, days
    )
    await connection.close()
    return upload_id


async def test_what_ended_long_ago_expires_oldest_first_and_is_named_until_it_is_forgotten(loads: Loads) -> None:
    older, old, young = await failed(loads, days=9), await failed(loads, days=8), await failed(loads, days=6)
    expiry = Expiry(loads.ledger._pool)
    assert await expiry.expire(retention_seconds=WEEK, limit=1) == [Expired(older, CREATED_AT)]
    both = [Expired(older, CREATED_AT), Expired(old, CREATED_AT)]
    assert await expiry.expire(retention_seconds=WEEK, limit=10) == both
    assert await expiry.expire(retention_seconds=WEEK, limit=10) == both
    states = await loads.ledger.states([older, old, young, uuid4()])
    assert {upload_id: known.state for upload_id, known in states.items()} == {
        older: "expired",
        old: "expired",
        young: "failed",
    }
    await expiry.forget(both[0])
    assert await expiry.expire(retention_seconds=WEEK, limit=10) == both[1:]
    assert await loads.ledger.get(older) is None
    assert await loads.ledger.segments(older) == []


async def test_nothing_leads_back_from_expired(loads: Loads) -> None:
    upload_id = await failed(loads, days=8)
    await Expiry(loads.ledger._pool).expire(retention_seconds=WEEK, limit=10)
    with pytest.raises(Failure) as refused:
        await loads.ledger.reopen(upload_id)
    assert refused.value.code == "upload_gone"
    assert isinstance(await loads.take_or_ended(upload_id), Ended)


async def test_only_an_expired_row_of_that_time_is_forgotten(loads: Loads) -> None:
    upload_id = await failed(loads, days=8)
    expiry = Expiry(loads.ledger._pool)
    await expiry.forget(Expired(upload_id, CREATED_AT))
    assert await loads.ledger.get(upload_id) is not None
    await expiry.expire(retention_seconds=WEEK, limit=10)
    await expiry.forget(Expired(upload_id, CREATED_AT.replace(year=2025)))
    assert await loads.ledger.get(upload_id) is not None
