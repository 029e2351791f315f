"""JSON answers."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web


def json_response(
    document: Any, *, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An answer of anything that msgspec can encode: times in RFC 3339, structs by their own names."""
    return web.Response(
        body=msgspec.json.encode(document) + b"\n", status=status, content_type="application/json", headers=headers
    )
