"""Where things lie in the bucket."""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple
from uuid import UUID

PENDING_PREFIX: Final = "pending/"
UPLOADS_PREFIX: Final = "uploads/"


class UploadKey(NamedTuple):
    """A key below `uploads/`: whose it is, and what follows."""

    upload_id: UUID
    name: str

    @property
    def is_data(self) -> bool:
        """Whether data of an upload lies there."""
        return self.name.startswith("data-")

    @property
    def is_rejects(self) -> bool:
        """Whether rejects of a segment lie there."""
        return self.name.startswith("rejects/")


def data_key(upload_id: UUID) -> str:
    """A new key for the data of an upload: random, so that no two tries at the same upload can touch each other."""
    return f"uploads/{upload_id}/data-{secrets.token_hex(8)}"


def manifest_key(upload_id: UUID) -> str:
    """The key of an upload's manifest."""
    return f"uploads/{upload_id}/manifest.json"


def rejects_prefix(upload_id: UUID) -> str:
    """What the keys of an upload's rejects begin with."""
    return f"uploads/{upload_id}/rejects/"


def new_rejects_key(upload_id: UUID, segment: int) -> str:
    """A new key for the rejects of a segment: random, so that no two tries at the segment can touch each other."""
    return f"{rejects_prefix(upload_id)}{segment}-{secrets.token_hex(8)}"


def pending_key(upload_id: UUID) -> str:
    """The key of the marker that lies there until the upload reaches an end state."""
    return f"{PENDING_PREFIX}{upload_id}"


def upload_of_pending_key(key: str) -> UUID | None:
    """The upload that a marker belongs to, or `None` for a key that is not one of ours."""
    return _as_written(key.removeprefix(PENDING_PREFIX)) if key.startswith(PENDING_PREFIX) else None


def parse_upload_key(key: str) -> UploadKey | None:
    """What a key below `uploads/` says, or `None` for a key that is not one of ours."""
    prefix, _, rest = key.partition("/")
    upload, _, name = rest.partition("/")
    upload_id = _as_written(upload)
    return UploadKey(upload_id, name) if prefix == "uploads" and upload_id is not None and name else None


def _as_written(text: str) -> UUID | None:
    """A UUID in the form that we write: others, which Python reads as well, name keys of somebody else."""
    try:
        upload_id = UUID(text)
    except ValueError:
        return None
    return upload_id if str(upload_id) == text else None
