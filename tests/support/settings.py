"""Settings for tests."""

from __future__ import annotations

from typing import Any

from stream_api.config import Settings


def change(settings: Settings, **values: Any) -> Settings:
    """A copy with some values changed, checked again as at start."""
    return Settings(**{**{name: getattr(settings, name) for name in type(settings).model_fields}, **values})
