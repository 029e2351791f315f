"""Encoded rows in the pieces in which COPY is fed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

#: One piece is one CopyData message: smaller ones cost more calls, larger ones stall the loop (FACTS: 64 to 512 KiB).
PIECE_BYTES: Final = 128 * 1024


async def pieces(*data: bytes | memoryview) -> AsyncIterator[memoryview]:
    """Views of `data`, one after another, each of at most `PIECE_BYTES`."""
    for each in data:
        view = memoryview(each)
        for start in range(0, len(view), PIECE_BYTES):
            yield view[start : start + PIECE_BYTES]
            # asyncpg's writer need not suspend while the socket takes everything: the loop must turn all the same.
            await asyncio.sleep(0)
