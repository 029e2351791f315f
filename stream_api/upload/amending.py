"""What a retry says anew about an upload that is stored: another dialect, other names, options and limits."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from stream_api.config import Settings
from stream_api.dialects.compression import ZSTD_MAGIC
from stream_api.dialects.detection import detect, head_bytes
from stream_api.dialects.dialect import FORM_FIELDS as DIALECT
from stream_api.dialects.dialect import Dialect, Given
from stream_api.errors import Failure
from stream_api.options import FORM_FIELDS as OPTIONS
from stream_api.storage.downloads import read_range
from stream_api.storage.manifests import Amendments, Manifest
from stream_api.storage.objects import ObjectStore
from stream_api.upload.body import CHUNK_BYTES
from stream_api.upload.form import Form

#: What may be said anew. All but the limit is part of the plan.
FIELDS: Final = frozenset({*DIALECT, *OPTIONS, "maxRejects"})
_BEYOND_THE_PLAN: Final = frozenset({"maxRejects"})


@dataclass(frozen=True, slots=True)
class Amended:
    """What is to be stored.

    :param json: `Amendments`.
    :param of_plan: names of those fields that a load which has committed something cannot follow any more.
    """

    json: str
    of_plan: tuple[str, ...]


async def amend(
    store: ObjectStore, settings: Settings, manifest: Manifest, parameters: Iterable[tuple[str, str]]
) -> Amended:
    """Take the parameters of a retry for what they mean for this upload.

    What was given before and is not given anew stands. Where the dialect is concerned the beginning of the file is
    looked at again, as when it came.

    :param manifest: with the amendments of earlier retries.
    :param parameters: of the query.
    :raises Failure: `option_invalid`, also for a name that is none of `FIELDS`; as `Form.take`, `detect` and
        `read_range`.
    """
    said = Form({}, settings.max_fields, settings.max_field_bytes)
    for name, value in parameters:
        if name not in FIELDS:
            allowed = sorted(FIELDS)
            detail = f"A retry has no parameter {name[:100]!r}; it takes: {', '.join(allowed)}."
            raise Failure("option_invalid", detail, field=name[:100], allowed=allowed)
        said.take([(name, value)])
    fields, dialect, options = manifest.fields | said.fields, manifest.dialect, manifest.options
    if said.names & DIALECT.keys():
        given = Given()
        for name in fields.keys() & DIALECT.keys():
            given = given.having(name, fields[name])
        given.check()
        dialect = await _dialect(store, manifest, given)
    for name in said.names & OPTIONS.keys():
        options = options.having(name, fields[name])
    amendments = Amendments(
        fields=fields,
        dialect=dialect,
        options=options,
        max_rejects=said.max_rejects or manifest.max_rejects,
    )
    return Amended(amendments.encode(), tuple(sorted(said.names - _BEYOND_THE_PLAN)))


async def _dialect(store: ObjectStore, manifest: Manifest, given: Given) -> Dialect:
    compressed = manifest.dialect.compression
    end = min(head_bytes(ZSTD_MAGIC if compressed == "zstd" else b""), manifest.size_bytes)
    head = b""
    async with aclosing(
        read_range(store, manifest.key, etag=manifest.etag, start=0, end=end, chunk_bytes=CHUNK_BYTES)
    ) as pieces:
        async for piece in pieces:
            head += piece
    return detect(head, whole=end == manifest.size_bytes, given=given)
