"""`GET /healthz` and `GET /readyz`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from stream_api.errors import Failure
from stream_api.http.collaborators import COLLABORATORS
from stream_api.http.json import json_response

log = structlog.stdlib.get_logger(__name__)

_CHECK_SECONDS: Final = 3.0


async def healthz(_: web.Request) -> web.Response:
    """The process runs and its event loop turns. Asks nobody."""
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """Whether everything that the service needs can be used, and what cannot.

    :raises Failure: `stopping` from the first signal on, so that nobody sends more; `not_ready`, naming in `missing`
        what cannot be used, and in `checks` the code of each failure.
    """
    collaborators = request.app[COLLABORATORS]
    if collaborators.stopping.begun:
        raise Failure("stopping", "The service has been told to stop, and will take nothing more.")
    checks = collaborators.checks
    answers = await asyncio.gather(*(_check(name, check) for name, check in checks.items()))
    results = {name: code for name, (code, _) in zip(checks, answers, strict=True)}
    missing = {name: detail for name, (code, detail) in zip(checks, answers, strict=True) if code != "ok"}
    if missing:
        detail = " ".join(f"Cannot use the {name}: {why}." for name, why in missing.items())
        raise Failure("not_ready", detail, missing=list(missing), checks=results)
    return json_response({"status": "ready", "checks": results})


async def _check(name: str, check: Callable[[], Awaitable[object]]) -> tuple[str, str]:
    """The code, `ok` or of the failure, and what is wrong."""
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            await check()
    except TimeoutError:
        return "timeout", f"no answer within {_CHECK_SECONDS:.0f} s"
    except Failure as failure:
        log.info("readyz.missing", service=name, code=failure.code, detail=failure.detail)
        return failure.code, failure.detail.rstrip(".")
    return "ok", ""
