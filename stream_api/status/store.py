"""Status records in Redis."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import msgspec
from redis.asyncio import Redis

from stream_api.status.connection import redis_failures
from stream_api.status.record import StatusRecord

# A worker that was frozen, and wakes up to write what it was about to, must not overwrite what its successor wrote. Nor
# is the record of an upload that has expired in the way of the next one with its Idempotency-Key, which has its id:
# revisions are compared where both were created at the same time. (As text: seven days apart, formats do not matter.)
_WRITE: Final = """
local old = redis.call('GET', KEYS[1])
if old then
  local readable, record = pcall(cjson.decode, old)
  if readable and type(record) == 'table' then
    local created = type(record['createdAt']) == 'string' and record['createdAt'] or ''
    if created > ARGV[4] then return 0 end
    if created == ARGV[4] and (tonumber(record['revision']) or 0) > tonumber(ARGV[2]) then return 0 end
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
return 1
"""


class StatusStore:
    """Status records, each for a limited time from its last change.

    :param redis: of `open_redis`; stays the caller's.
    :param ttl_seconds: how long a record lives.
    """

    def __init__(self, redis: Redis, *, ttl_seconds: int) -> None:
        self._redis = redis
        self._ttl_seconds = ttl_seconds
        self._write = redis.register_script(_WRITE)

    async def write(self, record: StatusRecord, /) -> None:
        """Replace the record of that upload, unless that is of a later revision, or of a later upload of that id.

        :raises Failure: `queue_unavailable`.
        """
        async with redis_failures():
            await self._write(
                keys=[_key(record.upload_id)],
                args=[
                    msgspec.json.encode(record),
                    record.revision,
                    self._ttl_seconds,
                    msgspec.to_builtins(record)["createdAt"],
                ],
            )

    async def read(self, upload_id: UUID) -> StatusRecord | None:
        """The record; `None` when there is none, or one that this version cannot read: it is only a copy.

        :raises Failure: `queue_unavailable`.
        """
        async with redis_failures():
            found = await self._redis.get(_key(upload_id))
        if found is None:
            return None
        try:
            return msgspec.json.decode(found, type=StatusRecord)
        except msgspec.DecodeError:
            return None

    async def remove(self, upload_id: UUID) -> None:
        """Remove the record of an upload that is to be forgotten.

        :raises Failure: `queue_unavailable`.
        """
        async with redis_failures():
            await self._redis.delete(_key(upload_id))

    async def check(self) -> None:
        """Write something, for `/readyz`: a Redis that is full still reads.

        :raises Failure: `queue_unavailable`.
        """
        async with redis_failures():
            await self._redis.set("stream-api:check", "", ex=60)


def _key(upload_id: UUID) -> str:
    return f"stream-api:upload:{upload_id}"
