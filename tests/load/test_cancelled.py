"""Loads of uploads that somebody cancels, as the worker meets them when no signal reaches it."""

from __future__ import annotations

import asyncio

from stream_api.datasets.dataset import built_in
from stream_api.errors import Failure
from stream_api.load.loader import intake_of
from stream_api.load.reporting import Reporter, status_record
from tests.load.conftest import Loading, events
from tests.support.patience import PATIENCE_SECONDS


async def test_what_was_cancelled_before_it_was_taken_is_cleaned_up(loading: Loading) -> None:
    manifest = await loading.stored(events(range(10)))
    # As if the process that cancelled it had died at that moment.
    cancelled = await loading.ledger.cancel(intake_of(manifest, built_in("webhook_events")))
    assert await loading.load(manifest) == cancelled
    assert (await loading.count(), await loading.keys()) == (0, [])
    assert loading.statuses.records[-1] == status_record(manifest, cancelled)
    assert loading.announced == [cancelled]


async def test_a_load_that_is_cancelled_in_its_middle_ends_and_leaves_what_it_had(loading: Loading) -> None:
    manifest = await loading.stored(events(range(20_000)), segment_bytes=16 * 1024)
    loads = asyncio.create_task(loading.loader.load(manifest.upload_id))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await loading.count():  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0)
    cancelled = await loading.ledger.cancel(intake_of(manifest, built_in("webhook_events")))
    assert cancelled.state == "cancelled"
    rows = await loading.count()
    assert 0 < rows == cancelled.rows_processed < 20_000
    await loads
    assert await loading.count() == rows
    assert await loading.ledger.get(manifest.upload_id) == cancelled
    assert await loading.lanes() == []


async def test_an_upload_that_has_ended_waits_for_nothing(loading: Loading) -> None:
    manifest = await loading.stored(events(range(10)))
    cancelled = await loading.ledger.cancel(intake_of(manifest, built_in("webhook_events")))
    reporter = Reporter(loading.statuses)
    await reporter.write(manifest, cancelled)
    for run in (None, cancelled.run):
        await reporter.waits(manifest.upload_id, run, Failure("database_unavailable", "away"))
    assert loading.statuses.records == [status_record(manifest, cancelled)]
