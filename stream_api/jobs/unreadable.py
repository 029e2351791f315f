"""Uploads whose manifest cannot be read: nothing is known of them, so they are passed over and never in the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from stream_api.errors import Failure

T = TypeVar("T")
log = structlog.get_logger()


def passing_over(do: Callable[[T], Awaitable[object]]) -> Callable[[T], Awaitable[None]]:
    """`do`, for `for_each`: of an upload whose manifest cannot be read it says so, and goes on with the next."""

    async def one(item: T) -> None:
        try:
            await do(item)
        except Failure as failure:
            if failure.code != "manifest_unreadable":
                raise
            log.warning("jobs.upload_passed_over", code=failure.code, detail=failure.detail)

    return one
