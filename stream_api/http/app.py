"""The web application: routes, middleware, and the runner that fits them."""

from __future__ import annotations

from aiohttp import hdrs, web

from stream_api.http.cancelling import delete_upload
from stream_api.http.collaborators import COLLABORATORS, Collaborators
from stream_api.http.health import healthz, readyz
from stream_api.http.problems import problems
from stream_api.http.rejects import get_rejects
from stream_api.http.retrying import post_retry
from stream_api.http.stopping import UnderWay
from stream_api.http.uploads import get_status, post_upload
from stream_api.http.webhooks import post_webhook


def make_web_app(
    collaborators: Collaborators, *, content_length_limit: int, under_way: UnderWay | None = None
) -> web.Application:
    """The application. It opens and closes nothing: what it works with is handed in and stays the caller's.

    :param content_length_limit: a longer body, waiting for `100 Continue`, is not asked for. The handler refuses it.
    :param under_way: counts the requests, and can abort them.
    """
    app = web.Application(middlewares=[problems, (under_way or UnderWay()).middleware])
    app[COLLABORATORS] = collaborators

    async def expect(request: web.Request) -> None:
        if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
            return
        if request.content_length is None or request.content_length <= content_length_limit:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # As aiohttp's own handler does: the answer itself has not begun.
            request.writer.output_size = 0

    app.router.add_post("/upload", post_upload, expect_handler=expect)
    app.router.add_get("/upload/{id}/status", get_status)
    app.router.add_get("/upload/{id}/rejects", get_rejects, allow_head=False)
    app.router.add_post("/upload/{id}/retry", post_retry, expect_handler=expect)
    app.router.add_post("/upload/{id}/webhook", post_webhook, expect_handler=expect)
    app.router.add_delete("/upload/{id}", delete_upload, expect_handler=expect)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    return app


def make_runner(app: web.Application, *, shutdown_timeout_seconds: float) -> web.AppRunner:
    """A runner for a `BoundedSite`, which makes the connections' protocols itself."""
    return web.AppRunner(app, shutdown_timeout=shutdown_timeout_seconds)
