"""The ways into the service, by curl: a file by itself, what is refused before it has come, retries that say more."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from stream_api.config import MIB, Settings
from tests.load.conftest import HEADER, event, events
from tests.support.service import Service, client_of, running

pytestmark = pytest.mark.timeout(150)


async def curl(service: Service, path: str, *options: str, stdin: bytes | None = None) -> tuple[dict[str, Any], int]:
    """The answer's document, and how many bytes of the body curl has sent."""
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-X", "POST", "-w", "\n%{size_upload}", *options, f"{service.url}{path}",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate(stdin)
    document, _, sent = output.decode().rpartition("\n")
    answer: dict[str, Any] = json.loads(document)
    return answer, int(sent)


async def test_the_ways_in(settings: Settings, tmp_path: Path) -> None:
    csv, big = tmp_path / "events.csv", tmp_path / "big.csv"
    csv.write_bytes(events(range(100)).replace(b",", b";"))
    with big.open("wb") as file:
        file.write(HEADER.replace(b"source", b"sauce"))
        for number in range(200):
            file.write(event(number) * (MIB // len(event(number))))
    kind = ("-H", "Content-Type: text/csv")
    async with running("serve", settings, tmp_path) as service, client_of(service) as client:
        # A file by itself, and one of no length, from a pipe.
        answer, sent = await curl(service, "/upload?delimiter=;&wait=true&fileName=a.csv", *kind, "-T", str(csv))
        assert (answer["status"], answer["rowsProcessed"], answer["fileName"]) == ("completed", 100, "a.csv"), answer
        assert (answer["dialect"]["delimiter"], answer["options"], sent) == (";", {}, csv.stat().st_size)
        answer, _ = await curl(service, "/upload?wait=true", *kind, "-T", "-", stdin=events(range(100, 300)))
        assert (answer["status"], answer["rowsProcessed"]) == ("completed", 200), answer
        answer, _ = await curl(service, "/upload?wait=true", *kind, "--data-binary", f"@{csv}")
        assert (answer["status"], answer["rejected"]) == ("completed", {"duplicate_key": 100}), answer
        # Neither form nor header: what curl says by itself for --data-binary.
        answer, _ = await curl(service, "/upload", "--data-binary", f"@{csv}")
        assert (answer["code"], "text/csv" in answer["detail"]) == ("content_type_unsupported", True)
        # 200 MiB that cannot be loaded are not sent.
        for path, options in {
            "/upload?dataset=webhook_events": ("-F", f"file=@{big}"),
            "/upload": ("-F", "dataset=webhook_events", "-F", f"file=@{big}"),
            "/upload?mode=append": (*kind, "-T", str(big)),
        }.items():
            answer, sent = await curl(service, path, *options)
            assert (answer["status"], answer["code"], answer["nearest"]) == (
                422,
                "header_mismatch",
                {"sauce": ["source"]},
            )
            assert sent < 100 * MIB
        # What nobody could know early: the client has said another encoding than the file has.
        csv.write_bytes(HEADER + "".join(event(n, source="Köln").decode() for n in range(300, 310)).encode("latin-1"))
        answer, _ = await curl(service, "/upload?encoding=utf-8&maxRejects=0", *kind, "-T", str(csv))
        status = await client.end(answer["uploadId"])
        assert (status["status"], status["error"]["code"]) == ("failed", "too_many_rejects")
        answer, _ = await curl(
            service, f"/upload/{answer['uploadId']}/retry", "-G", "--data-urlencode", "encoding=latin1"
        )
        assert (answer["status"], answer["dialect"]["encoding"]) == ("uploaded", "iso-8859-1")
        status = await client.end(answer["uploadId"])
        assert (status["status"], status["rowsProcessed"], status["run"]) == ("completed", 10, 2), status
        assert not service.errors()
