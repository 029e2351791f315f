"""Upload ids: UUIDs of version 7, so that keys and rows sort by time."""

from __future__ import annotations

import secrets
import time
from uuid import UUID


def new_upload_id() -> UUID:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds since 1970, then 74 random bits.

    The standard library makes them from Python 3.14.
    """
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    return UUID(
        int=(milliseconds & (1 << 48) - 1) << 80
        | 0x7 << 76
        | (random >> 62) << 64
        | 0b10 << 62
        | random & (1 << 62) - 1
    )
