"""How long a load puts up with faults that pass, before its job is delayed or the load fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

from stream_api.errors import Failure
from stream_api.flow.jitter import full_jitter

#: Pauses between attempts: with the four of the default a load tries for one to two seconds before its job is delayed,
#: which costs a successor no more than the wait.
_BASE_SECONDS: Final = 0.25
_CAP_SECONDS: Final = 5.0
#: SQLSTATE of a full disk.
_DISK_FULL: Final = "53100"
#: Uploads of which a process remembers a full disk. Those beyond have the earliest forgotten, and wait longer.
_MAX_REMEMBERED: Final = 1000


class Attempts:
    """Counts the attempts of one load in a row that brought no segment.

    :param most: so many may fail; the next failure after that is the job's matter.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._segments_before = 0
        self._fruitless = 0
        #: Committed segments, as far as this load knows.
        self.segments = 0

    def failed(self) -> float | None:
        """The pause in seconds before the next attempt; `None` when there is to be none."""
        if self.segments != self._segments_before:
            self._segments_before = self.segments
            self._fruitless = 0
        self._fruitless += 1
        if self._fruitless >= self._most:
            return None
        return full_jitter(self._fruitless, base_seconds=_BASE_SECONDS, cap_seconds=_CAP_SECONDS)


class FullDisks:
    """Since when loads have met a full disk of the database, and nothing else: by and by somebody has to be told.

    This process's memory only: a load that moves to another worker begins to wait anew there.

    :param limit_seconds: how long a load waits for room.
    :param clock: seconds that only grow.
    """

    def __init__(self, limit_seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_seconds = limit_seconds
        self._clock = clock
        #: When an upload first met it, and the segments that it had then.
        self._since: dict[UUID, tuple[float, int]] = {}

    def judged(self, upload_id: UUID, failure: Failure, *, segments: int) -> Failure:
        """The failure as it is, or `disk_full`, which is permanent, when the disk has been full for too long.

        :param segments: committed ones; with each more the wait begins anew.
        """
        if failure.extra.get("sqlstate") != _DISK_FULL:
            return failure
        now = self._clock()
        since, segments_then = self._since.get(upload_id, (now, segments))
        if segments != segments_then:
            since = now
        if now - since < self._limit_seconds:
            self._since[upload_id] = since, segments
            if len(self._since) > _MAX_REMEMBERED:
                del self._since[next(iter(self._since))]
            return failure
        self.forget(upload_id)
        detail = (
            f"The disk of the database has been full for {now - since:.0f} s (SQLSTATE {_DISK_FULL}): make room "
            "for the rest of the file, then retry. What is loaded stays."
        )
        return Failure("disk_full", detail, sqlstate=_DISK_FULL)

    def forget(self, upload_id: UUID) -> None:
        """The upload has ended."""
        self._since.pop(upload_id, None)
