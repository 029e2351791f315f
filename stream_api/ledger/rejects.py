"""Which rejects there are: what the committed rows of an upload's segments name, in the file's order."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from stream_api.ledger.pool import Pool, using

#: Rows asked for together: each may hold 16 KiB.
_PAGE: Final = 32

_NAMED: Final = """
SELECT number, rejects, rejects_key FROM stream_api.segments
WHERE upload_id = $1 AND table_oid IS NOT NULL AND number > $2 AND num_nonnulls(rejects, rejects_key) > 0
ORDER BY number LIMIT $3
"""
# A file without a header has at most a byte order mark or the like in its place.
_HEADER: Final = """
SELECT coalesce(segment.header, CASE WHEN upload.plan ->> 'header' = 'false' THEN ''::bytea END)
  FROM stream_api.uploads AS upload
  LEFT JOIN stream_api.segments AS segment
    ON segment.upload_id = upload.id AND segment.table_oid IS NOT NULL AND segment.header IS NOT NULL
 WHERE upload.id = $1
"""
_KNOWN: Final = "SELECT rejects_key FROM stream_api.segments WHERE upload_id = $1 AND rejects_key = ANY ($2::text[])"


@dataclass(frozen=True, slots=True)
class SegmentRejects:
    """The rejects of a segment: packed, or the key of the object that has them so."""

    segment: int
    packed: bytes | None
    key: str | None


class RejectsLedger:
    """What PostgreSQL knows of rejects.

    Every method raises `Failure` `database_unavailable` (transient) or `database_refused`.

    :param pool: of `open_pool`; stays the caller's.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool: Final = pool

    async def named(self, upload_id: UUID) -> AsyncGenerator[SegmentRejects, None]:
        """The segments of an upload that have rejects, in the file's order; no connection is held in between."""
        last = -1
        while True:
            async with using(self._pool) as connection:
                rows = await connection.fetch(_NAMED, upload_id, last, _PAGE)
            for row in rows:
                yield SegmentRejects(row["number"], row["rejects"], row["rejects_key"])
            if len(rows) < _PAGE:
                return
            last = rows[-1]["number"]

    async def header(self, upload_id: UUID) -> bytes | None:
        """The header of the file, byte for byte, or what stands before the first record of a file without one.

        `None` when the segment that holds the header is not loaded.
        """
        async with using(self._pool) as connection:
            header: bytes | None = await connection.fetchval(_HEADER, upload_id)
        return header

    async def unknown(self, upload_id: UUID, keys: Collection[str]) -> set[str]:
        """Those of the keys that no committed row of the upload names."""
        async with using(self._pool) as connection:
            rows = await connection.fetch(_KNOWN, upload_id, list(keys))
        return set(keys) - {row["rejects_key"] for row in rows}
