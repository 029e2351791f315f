"""Uploading: MB a second (of 2^20 bytes) against the same file put straight into the same store, and a raw copy."""

from __future__ import annotations

import asyncio
import io
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from bench.client import curl
from bench.frame import Chapter, Figure, Goal, in_turns
from bench.sizes import Sizes
from bench.stand import File, Running, Stand, say
from bench.tables import EVENTS
from stream_api.config import MIB
from stream_api.storage.objects import DATA_TYPE

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

TITLE: Final = "Uploading"
#: Clients at once.
_AT_ONCE: Final = (1, 4, 16)
#: As the service's own, unless they are set.
_PART_BYTES: Final = 8 * MIB
_PARTS_IN_FLIGHT: Final = 3
_NOTES: Final = {
    "typed": "SeaweedFS compresses what has no type and looks like text, and not this.",
    "copy": "The copy is not synced to the disk, nor is what the store has.",
}


async def measure(stand: Stand, sizes: Sizes, chapter: Chapter) -> None:
    """Fill the chapter."""
    # Without a worker: no load is to be in the way.
    async with stand.running({}, options=["--no-worker"]) as running, _s3(stand) as client:
        for clients in _AT_ONCE:
            file = await stand.files.of_size(EVENTS, sizes.upload_bytes // clients)
            contestants = _contestants(stand, running, client, file, clients)
            found = await in_turns(contestants, sizes.times)
            chapter.figures += _figures(found, file, clients)


@asynccontextmanager
async def _s3(stand: Stand) -> AsyncIterator[S3Client]:
    """A client of the store, with the settings that the service's has."""
    settings = stand.settings
    config = AioConfig(
        signature_version="s3v4",
        s3={"addressing_style": settings.s3_addressing_style},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=64,
    )
    secret = settings.s3_secret_access_key
    async with get_session().create_client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        aws_access_key_id=settings.s3_access_key_id,
        aws_secret_access_key=None if secret is None else secret.get_secret_value(),
        region_name=settings.s3_region,
        config=config,
    ) as client:
        yield client


def _contestants(
    stand: Stand, running: Running, client: S3Client, file: File, clients: int
) -> dict[str, Callable[[], Awaitable[float]]]:
    """Ways of putting the file somewhere, `clients` times at once; each gives its seconds."""
    bucket = stand.settings.bucket

    async def ours() -> float:
        began = time.monotonic()
        accepted = await asyncio.gather(*(curl(running.service.url, file.path) for _ in range(clients)))
        seconds = time.monotonic() - began
        for each in accepted:
            await running.client.cancel(each.upload_id)
        return seconds

    def straight(put: Callable[[str], Awaitable[None]]) -> Callable[[], Awaitable[float]]:
        async def run() -> float:
            keys = [f"bench/{uuid4()}" for _ in range(clients)]
            began = time.monotonic()
            await asyncio.gather(*(put(key) for key in keys))
            seconds = time.monotonic() - began
            for key in keys:
                await client.delete_object(Bucket=bucket, Key=key)
            return seconds

        return run

    async def put(key: str) -> None:
        with await asyncio.to_thread(file.path.open, "rb") as body:
            await client.put_object(Bucket=bucket, Key=key, Body=body)

    async def typed(key: str) -> None:
        with await asyncio.to_thread(file.path.open, "rb") as body:
            await client.put_object(Bucket=bucket, Key=key, Body=body, ContentType=DATA_TYPE)

    async def multipart(key: str) -> None:
        await _put_parts(client, bucket, key, file)

    async def copy() -> float:
        targets = [stand.folder / f"copy-{number}" for number in range(clients)]
        began = time.monotonic()
        await asyncio.gather(*(asyncio.to_thread(shutil.copyfile, file.path, target) for target in targets))
        seconds = time.monotonic() - began
        for target in targets:
            target.unlink()
        return seconds

    return {
        "ours": ours,
        "put": straight(put),
        "typed": straight(typed),
        "multipart": straight(multipart),
        "copy": copy,
    }


def _figures(found: dict[str, list[float]], file: File, clients: int) -> list[Figure]:
    rates = {name: [clients * file.size_bytes / MIB / each for each in seconds] for name, seconds in found.items()}
    say(f"  {clients} at once: " + ", ".join(f"{name} {max(values):.0f} MB/s" for name, values in rates.items()))
    return [
        Figure(
            name=f"upload.{clients}.{name}",
            title=f"{clients} × {file.size_bytes / MIB:,.0f} MB at once",
            unit="MB/s",
            values=rates["ours"],
            reference=reference,
            reference_values=rates[name],
            goal=Goal(must=0.9, aim=1.0) if (name, clients) == ("put", 1) else None,
            note=_NOTES.get(name, ""),
        )
        for name, reference in (
            ("put", "a plain PUT by aiobotocore"),
            ("typed", f"the same as {DATA_TYPE}, as the service has it"),
            ("multipart", f"multipart by aiobotocore, {_PART_BYTES // MIB} MiB, {_PARTS_IN_FLIGHT} in flight"),
            ("copy", "a raw copy of the file"),
        )
    ]


async def _put_parts(client: S3Client, bucket: str, key: str, file: File) -> None:
    begun = await client.create_multipart_upload(Bucket=bucket, Key=key)
    slots = asyncio.Semaphore(_PARTS_IN_FLIGHT)

    async def send(number: int, data: bytes) -> str:
        try:
            answer = await client.upload_part(
                Bucket=bucket, Key=key, UploadId=begun["UploadId"], PartNumber=number, Body=io.BytesIO(data)
            )
        finally:
            slots.release()
        return answer["ETag"]

    sending = []
    with await asyncio.to_thread(file.path.open, "rb") as body:
        number = 0
        while data := await asyncio.to_thread(body.read, _PART_BYTES):
            number += 1
            await slots.acquire()
            sending.append(asyncio.create_task(send(number, data)))
    tags = await asyncio.gather(*sending)
    await client.complete_multipart_upload(
        Bucket=bucket,
        Key=key,
        UploadId=begun["UploadId"],
        MultipartUpload={"Parts": [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, start=1)]},
    )
