"""The sweep: deliveries that are due and that nothing drives get a job again, so that Redis may lose everything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final
from uuid import UUID

from stream_api.flow.rounds import keep_doing
from stream_api.ledger.outbox import Outbox

#: In one round; the next ones take the rest.
_LIMIT: Final = 1000


async def keep_sweeping(
    outbox: Outbox, enqueue: Callable[[UUID, int], Awaitable[None]], *, interval_seconds: float
) -> None:
    """Do rounds until cancelled. A database or queue that is away ends a round, never the sweep.

    Every worker may do it at the same time: a job that there is already is not added again.

    :param enqueue: gives a delivery a job where it has none (`WebhookQueue.ensure`).
    """
    await keep_doing(
        partial(sweep, outbox, enqueue, overdue_seconds=interval_seconds),
        interval_seconds=interval_seconds,
        interrupted="webhooks.sweep_interrupted",
        crashed="webhooks.sweep_crashed",
    )


async def sweep(outbox: Outbox, enqueue: Callable[[UUID, int], Awaitable[None]], *, overdue_seconds: float) -> int:
    """Do one round.

    :param overdue_seconds: what is due for a shorter time is left to the job that it will have.
    :returns: how many deliveries were found.
    :raises Failure: of the database or the queue. What was enqueued until then stays.
    """
    found = await outbox.overdue(seconds=overdue_seconds, limit=_LIMIT)
    for delivery in found:
        await enqueue(delivery.upload_id, delivery.round)
    return len(found)
