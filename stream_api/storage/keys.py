"""Where things lie in the bucket."""

from __future__ import annotations

import secrets
from typing import Final
from uuid import UUID

PENDING_PREFIX: Final = "pending/"


def data_key(upload_id: UUID) -> str:
    """A new key for the data of an upload: random, so that no two tries at the same upload can touch each other."""
    return f"uploads/{upload_id}/data-{secrets.token_hex(8)}"


def manifest_key(upload_id: UUID) -> str:
    """The key of an upload's manifest."""
    return f"uploads/{upload_id}/manifest.json"


def pending_key(upload_id: UUID) -> str:
    """The key of the marker that lies there until the upload reaches an end state."""
    return f"{PENDING_PREFIX}{upload_id}"


def upload_of_pending_key(key: str) -> UUID | None:
    """The upload that a marker belongs to, or `None` for a key that is not one of ours."""
    try:
        return UUID(key.removeprefix(PENDING_PREFIX))
    except ValueError:
        return None
