"""The outbox: an end state arms it, and of everybody who acts on it only who is of its round has an effect."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from stream_api.errors import Failure
from stream_api.ledger.outbox import INTERRUPTED, Delivery, NotDue, Outbox
from stream_api.ledger.rows import UploadRow
from tests.ledger.conftest import Loads

URL = "https://example.com/hook"


@pytest.fixture
def outbox(loads: Loads) -> Outbox:
    return Outbox(loads.ledger._pool)


async def cancelled(loads: Loads, upload_id: UUID, url: str | None = URL) -> UploadRow:
    return await loads.ledger.cancel(loads.intake(upload_id, callback_url=url))


async def failed(loads: Loads, upload_id: UUID) -> UploadRow:
    await loads.ledger.take(loads.intake(upload_id, callback_url=URL))
    return await loads.ledger.fail(upload_id, 1, code="header_mismatch", message="no")


def of(row: UploadRow) -> Delivery:
    return Delivery(row.id, row.webhook_round)


async def test_an_end_state_arms_it_where_there_is_a_url(loads: Loads, outbox: Outbox, upload_id: UUID) -> None:
    row = await cancelled(loads, upload_id)
    assert (row.webhook_state, row.webhook_attempts, row.callback_url) == ("pending", 0, URL)
    assert await outbox.overdue(seconds=0, limit=10) == [of(row)]
    without = await cancelled(loads, uuid4(), None)
    assert without.webhook_state is None
    assert await outbox.overdue(seconds=0, limit=10) == [of(row)]
    assert await outbox.claim(of(without), lease_seconds=1, max_attempts=4) is None


async def test_a_claim_counts_and_excludes_others_for_its_lease(loads: Loads, outbox: Outbox, upload_id: UUID) -> None:
    row = await cancelled(loads, upload_id)
    claims = await asyncio.gather(*(outbox.claim(of(row), lease_seconds=60, max_attempts=4) for _ in range(5)))
    (won,) = [claim for claim in claims if isinstance(claim, UploadRow)]
    assert won.webhook_attempts == 1
    assert sum(isinstance(claim, NotDue) and 50 < claim.seconds <= 60 for claim in claims) == 4
    assert await outbox.overdue(seconds=0, limit=10) == []


async def test_outcomes_raise_the_revision(loads: Loads, outbox: Outbox, upload_id: UUID) -> None:
    row = await cancelled(loads, upload_id)
    await outbox.claim(of(row), lease_seconds=0, max_attempts=4)
    postponed = await outbox.postpone(of(row), error="x: y", seconds=0)
    assert postponed is not None
    assert (postponed.webhook_state, postponed.webhook_error) == ("pending", "x: y")
    assert postponed.webhook_at is not None
    delivered = await outbox.delivered(of(row))
    assert delivered is not None
    assert (delivered.webhook_state, delivered.webhook_error, delivered.webhook_attempts) == ("delivered", None, 1)
    assert row.revision < postponed.revision < delivered.revision
    for late in (outbox.delivered(of(row)), outbox.give_up(of(row), error="x")):
        assert await late is None
    assert await outbox.claim(of(row), lease_seconds=0, max_attempts=4) is None


async def test_tries_that_are_used_up_are_a_failure(loads: Loads, outbox: Outbox, upload_id: UUID) -> None:
    row = await cancelled(loads, upload_id)
    for attempt in (1, 2):
        claim = await outbox.claim(of(row), lease_seconds=0, max_attempts=2)
        assert isinstance(claim, UploadRow)
        assert (claim.webhook_state, claim.webhook_attempts) == ("pending", attempt)
    claim = await outbox.claim(of(row), lease_seconds=0, max_attempts=2)
    assert isinstance(claim, UploadRow)
    assert (claim.webhook_state, claim.webhook_attempts, claim.webhook_error) == ("failed", 2, INTERRUPTED)


async def test_a_later_round_leaves_nothing_to_the_earlier(loads: Loads, outbox: Outbox, upload_id: UUID) -> None:
    row = await failed(loads, upload_id)
    again = await outbox.rearm(upload_id)
    assert again.webhook_round == row.webhook_round + 1
    assert again.revision > row.revision
    assert await outbox.claim(of(row), lease_seconds=0, max_attempts=4) is None
    assert await outbox.give_up(of(row), error="x") is None
    assert isinstance(await outbox.claim(of(again), lease_seconds=0, max_attempts=4), UploadRow)
    reopened = await loads.ledger.reopen(upload_id)
    assert (reopened.webhook_state, reopened.webhook_attempts) == (None, 0)
    assert await outbox.delivered(of(again)) is None
    assert await outbox.overdue(seconds=0, limit=10) == []


async def test_what_cannot_be_sent_again(loads: Loads, outbox: Outbox, upload_id: UUID) -> None:
    async def why(upload_id: UUID) -> str:
        with pytest.raises(Failure) as caught:
            await outbox.rearm(upload_id)
        return caught.value.code

    assert await why(upload_id) == "upload_not_found"
    await loads.take(upload_id)
    assert await why(upload_id) == "upload_not_ended"
    await cancelled(loads, upload_id)  # its row was made without a URL, and that stands
    assert await why(upload_id) == "webhook_missing"


async def test_the_longest_overdue_come_first_and_only_those(loads: Loads, outbox: Outbox) -> None:
    rows = [await cancelled(loads, uuid4()) for _ in range(3)]
    await outbox.postpone(of(rows[0]), error="x", seconds=-50)
    await outbox.postpone(of(rows[1]), error="x", seconds=-90)
    assert await outbox.overdue(seconds=30, limit=10) == [of(rows[1]), of(rows[0])]
    assert await outbox.overdue(seconds=30, limit=1) == [of(rows[1])]
    assert await outbox.overdue(seconds=100, limit=10) == []
