from __future__ import annotations

import asyncio

import pytest
import structlog.testing

from stream_api.errors import Failure
from stream_api.flow.rounds import keep_doing
from tests.support.patience import PATIENCE_SECONDS


class Rounds:
    """Rounds that end as they are told; what comes after the last one waits."""

    def __init__(self, *ends: Exception | None) -> None:
        self.ends = list(ends)
        self.done = asyncio.Event()

    async def __call__(self) -> None:
        if not self.ends:
            self.done.set()
            await asyncio.Event().wait()
        end = self.ends.pop(0)
        if end is not None:
            raise end


async def kept(ends: Rounds, *, interval_seconds: float = 0.0) -> None:
    """Do all the rounds; then cancel."""
    doing = asyncio.create_task(
        keep_doing(ends, interval_seconds=interval_seconds, interrupted="it.interrupted", crashed="it.crashed")
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        await ends.done.wait()
    doing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doing


async def test_no_failure_and_no_error_is_the_last_round() -> None:
    with structlog.testing.capture_logs() as logs:
        await kept(Rounds(None, Failure("storage_unavailable", "away"), ValueError("a bug"), None))
    assert logs == [
        {
            "event": "it.interrupted",
            "log_level": "warning",
            "code": "storage_unavailable",
            "detail": "away",
        },
        {"event": "it.crashed", "log_level": "error", "exc_info": True},
    ]


async def test_between_two_rounds_there_is_about_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await kept(Rounds(*[None] * 50, ValueError("a pause follows an error too")), interval_seconds=100.0)
    assert len(pauses) == 51
    assert all(90 <= pause <= 110 for pause in pauses)
    assert len(set(pauses)) > 1
