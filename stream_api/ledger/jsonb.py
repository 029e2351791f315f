"""JSON for columns of type jsonb, with texts that quote what was in a file or what a client has called a column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


def as_jsonb(value: Any) -> str:
    """A JSON-ready value as a parameter, without what jsonb refuses (NUL) or UTF-8 cannot say."""
    return msgspec.json.encode(_storable(value)).decode()


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return value
