"""Rounds that are done for as long as the process lives."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import NoReturn

import structlog

from stream_api.errors import Failure

log = structlog.get_logger()


async def keep_doing(
    do_round: Callable[[], Awaitable[object]], *, interval_seconds: float, interrupted: str, crashed: str
) -> NoReturn:
    """Do rounds until cancelled. Nothing that a round raises ends them: a server that is away comes back.

    :param interval_seconds: between two rounds, give or take a tenth, so that processes that were started together do
        not go on asking at the same moment.
    :param interrupted: the event that tells of a `Failure`.
    :param crashed: the event that tells of any other error, with its traceback.
    """
    while True:
        try:
            await do_round()
        except Failure as failure:
            log.warning(interrupted, code=failure.code, detail=failure.detail)
        except Exception:
            log.exception(crashed)
        await asyncio.sleep(interval_seconds * random.uniform(0.9, 1.1))  # noqa: S311 - it guards nothing
