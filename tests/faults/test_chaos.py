"""A few runs of chaos; `make chaos` makes many and longer ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.chaos import VALUES, Chaos, plan
from tests.faults.kinds import KINDS, Target
from tests.faults.servers import Servers, running_servers
from tests.faults.stand import open_stand
from tests.webhooks.conftest import receiving

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def servers() -> Iterator[Servers]:
    with running_servers() as started:
        yield started


async def test_some_runs_of_chaos(servers: Servers, tmp_path: Path) -> None:
    async with receiving() as receiver, open_stand(servers.settings, servers.bucket, tmp_path) as stand:
        chaos = Chaos(Target(stand, servers, VALUES), seed=5, rows=50_000, receiver=receiver)
        await chaos.target.start(workers=2)
        for number in range(2):
            await chaos.run(number)
        await stand.check_stopped()


def test_a_plan_is_repeatable_and_has_every_kind() -> None:
    plans = [plan(1, number) for number in range(200)]
    assert plans == [plan(1, number) for number in range(200)]
    assert {fault.kind for faults in plans for fault in faults} == set(KINDS)
