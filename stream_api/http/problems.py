"""Errors as RFC 9457 problem documents, for every route."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import hdrs, web

from stream_api.errors import CODES, Failure
from stream_api.http.draining import answer_and_drain, has_unread_body

log = structlog.stdlib.get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CONTENT_TYPE: Final = "application/problem+json"
#: Codes for the errors that aiohttp itself answers with; what is not here is a bad request.
_CODES_OF_STATUS: Final = {
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
}
_DEFAULT_RETRY_SECONDS: Final = 5
_ROUTES: Final = (
    "POST /upload, DELETE /upload/{id}, GET /upload/{id}/status, GET /upload/{id}/rejects, POST /upload/{id}/retry, "
    "POST /upload/{id}/webhook, GET /healthz, GET /readyz"
)


def problem(
    request: web.BaseRequest,
    code: str,
    detail: str,
    *,
    status: int | None = None,
    headers: dict[str, str] | None = None,
    extra: dict[str, Any] | None = None,
) -> web.Response:
    """A problem document.

    :param code: a key of `errors.CODES`; it never changes its meaning, and is what clients should look at.
    :param status: of the answer, where it is not the code's.
    :param extra: further members.
    """
    entry = CODES[code]
    answered = entry.status if status is None else status
    document: dict[str, Any] = {
        "type": f"urn:stream-api:problem:{code}",
        "title": entry.title,
        "status": answered,
        "detail": detail,
        "code": code,
        "instance": request.path,
    }
    document |= {name: value for name, value in (extra or {}).items() if name not in document}
    answer_headers = dict(headers or {})
    default_seconds = _DEFAULT_RETRY_SECONDS if answered == HTTPStatus.SERVICE_UNAVAILABLE else None
    seconds = (extra or {}).get("retryAfterSeconds", default_seconds)
    if seconds is not None:
        answer_headers.setdefault(hdrs.RETRY_AFTER, str(seconds))
    text = json.dumps(document) + "\n"
    return web.Response(text=text, status=answered, content_type=CONTENT_TYPE, headers=answer_headers)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers every error with a problem document, and sees to it that a client that is still sending gets it."""
    response = await _answer(request, handler)
    if has_unread_body(request):
        await answer_and_drain(request, response)
    return response


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Failure as failure:
        level = "warning" if failure.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "info"
        getattr(log, level)("http.refused", code=failure.code, path=request.path, cause=repr(failure.__cause__))
        return problem(request, failure.code, failure.detail, extra=failure.extra)
    except web.HTTPException as exc:
        if exc.status < HTTPStatus.BAD_REQUEST:
            raise
        code = _CODES_OF_STATUS.get(HTTPStatus(exc.status), "bad_request")
        # What aiohttp says on these goes no further than naming the status; its headers (Allow) are wanted.
        headers = {name: value for name, value in exc.headers.items() if name.title() == hdrs.ALLOW}
        return problem(request, code, _explain(request, exc), status=exc.status, headers=headers)
    except Exception:
        error_id = secrets.token_hex(8)
        log.exception("http.internal_error", error_id=error_id, method=request.method, path=request.path)
        detail = f"The log of the service says more under {error_id}."
        return problem(request, "internal_error", detail, extra={"errorId": error_id})


def _explain(request: web.Request, exc: web.HTTPException) -> str:
    if isinstance(exc, web.HTTPMethodNotAllowed):
        return f"{request.path[:200]} takes {', '.join(sorted(exc.allowed_methods))}, not {exc.method[:50]}."
    if isinstance(exc, web.HTTPNotFound):
        return f"There is nothing at {request.path[:200]}; there are: {_ROUTES}."
    return f"{exc.status}: {exc.reason}."
