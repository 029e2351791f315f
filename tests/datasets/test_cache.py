from __future__ import annotations

import asyncio

import pytest

from stream_api.datasets import cache
from stream_api.datasets.cache import TableCache, open_table_cache
from stream_api.datasets.catalogue import Table
from stream_api.errors import Failure


def table(oid: int) -> Table:
    return Table(oid=oid, schema="public", name="t", columns=())


class Catalogue:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.looks: list[asyncio.Future[Table]] = []

    async def look(self, name: str) -> Table:
        assert name == "t"
        look: asyncio.Future[Table] = asyncio.get_running_loop().create_future()
        self.looks.append(look)
        return await look

    async def asked(self, times: int) -> None:
        while len(self.looks) < times:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0)


async def test_who_asks_at_once_shares_a_look_begun_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue()
    tables = TableCache(catalogue.look)
    first = asyncio.create_task(tables.fresh("t"))
    await catalogue.asked(1)
    # That look may have seen what is no more when the second asks: it waits, and looks again.
    second, third = asyncio.create_task(tables.fresh("t")), asyncio.create_task(tables.fresh("t"))
    await asyncio.sleep(0)
    catalogue.looks[0].set_result(table(1))
    await catalogue.asked(2)
    catalogue.looks[1].set_result(table(2))
    assert list(await asyncio.gather(first, second, third)) == [table(1), table(2), table(2)]
    assert tables.copy("t") == table(2)
    monkeypatch.setattr(cache, "MAX_AGE_SECONDS", 0.0)
    assert tables.copy("t") is None
    assert len(catalogue.looks) == 2


async def test_nobody_waits_for_a_look_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LOOK_SECONDS", 0.05)
    catalogue = Catalogue()
    async with open_table_cache(catalogue.look) as tables:
        assert await tables.fresh("t") is None
        # No other is begun beside it, and by now none is waited for.
        async with asyncio.timeout(0.04):
            assert await tables.fresh("t") is None
        assert len(catalogue.looks) == 1
        # What it says in the end is good for whoever asks next.
        catalogue.looks[0].set_result(table(1))
        while tables.copy("t") is None:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0)
        assert await tables.fresh("t") is None
        await catalogue.asked(2)
    assert catalogue.looks[1].cancelled()


async def test_a_table_that_has_gone_is_forgotten_and_an_outage_forgets_nothing() -> None:
    catalogue = Catalogue()
    tables = TableCache(catalogue.look)
    for failure, kept in (Failure("database_unavailable", "x"), table(1)), (Failure("table_missing", "x"), None):
        for outcome in (table(1), failure):
            asked = asyncio.create_task(tables.fresh("t"))
            await catalogue.asked(1)
            look = catalogue.looks.pop()
            if isinstance(outcome, Failure):
                look.set_exception(outcome)
                with pytest.raises(Failure):
                    await asked
            else:
                look.set_result(outcome)
                assert await asked == outcome
        assert tables.copy("t") == kept
