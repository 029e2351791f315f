"""An object store in memory: what is tried with it is not what S3 does."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from typing import Any, cast

from stream_api.errors import Failure
from stream_api.storage.objects import ObjectInfo, ObjectStore


class _Body:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    async def read(self, size: int) -> bytes:
        start = self._position
        self._position += size
        return self._data[start : start + size]

    def close(self) -> None:
        pass


class MemoryStore:
    """As much of `ObjectStore` as a load asks for."""

    read_timeout_seconds = 30.0

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def as_store(self) -> ObjectStore:
        """For whoever asks for a real one."""
        return cast("ObjectStore", self)

    async def put(self, key: str, body: bytes, **_: Any) -> str:
        self.objects[key] = body
        return _etag(body)

    async def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise Failure("data_gone", key)
        return self.objects[key]

    async def open_range(self, key: str, *, etag: str, start: int, end: int) -> dict[str, Any]:
        data = await self.get(key)
        return {"Body": _Body(data[start:end]), "ETag": etag, "ContentRange": f"bytes {start}-{end - 1}/{len(data)}"}

    async def stat(self, key: str) -> ObjectInfo:
        data = await self.get(key)
        return ObjectInfo(size_bytes=len(data), etag=_etag(data))

    async def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    async def list_keys(self, prefix: str) -> AsyncGenerator[str, None]:
        for key in [key for key in self.objects if key.startswith(prefix)]:
            yield key


def _etag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
