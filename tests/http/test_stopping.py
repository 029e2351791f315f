from __future__ import annotations

import asyncio
from typing import cast

import pytest
from aiohttp import web

from stream_api.errors import Failure
from stream_api.http.stopping import UnderWay

REQUEST = cast("web.Request", object())


async def test_a_request_that_ends_in_time_is_left_alone() -> None:
    under_way, go_on = UnderWay(), asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await go_on.wait()
        return web.Response()

    request = asyncio.create_task(under_way.middleware(REQUEST, handler))
    await asyncio.sleep(0)
    assert under_way.count == 1
    finishing = asyncio.create_task(under_way.finish(seconds=20))
    await asyncio.sleep(0)
    go_on.set()
    assert (await request).status == 200
    assert (await finishing, under_way.count) == (0, 0)


async def test_a_request_that_does_not_is_aborted_when_it_has_cleaned_up() -> None:
    under_way, cleaned_up = UnderWay(), asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()
        return web.Response()

    request = asyncio.create_task(under_way.middleware(REQUEST, handler))
    await asyncio.sleep(0)
    assert await under_way.finish(seconds=0) == 1
    with pytest.raises(Failure) as caught:
        await request
    assert (caught.value.code, caught.value.status, caught.value.transient) == ("stopping", 503, True)
    assert cleaned_up.is_set()
    # One that came on a connection which was open still is aborted as well.
    with pytest.raises(Failure):
        await under_way.middleware(REQUEST, handler)
    assert under_way.count == 0


async def test_a_time_out_of_the_handler_is_its_own() -> None:
    async def handler(_: web.Request) -> web.Response:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await UnderWay().middleware(REQUEST, handler)
