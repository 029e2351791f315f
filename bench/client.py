"""A client of the service, and curl for uploads that are to cost the bench nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from bench.frame import BenchFailed

#: The longest that one request waits for the end of a load; it is asked again then.
_WAIT_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Accepted:
    """An upload that was answered by 202.

    :param seconds: from the request to the answer. :param at: of the answer, by `time.monotonic`.
    """

    upload_id: str
    seconds: float
    at: float


class Client:
    """A client of one service.

    :param url: of the service.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http: Final = http
        self._url: Final = url

    async def upload(self, file: Path) -> Accepted:
        """Upload a file as a form.

        :raises BenchFailed: when it is not answered by 202.
        """
        began = time.monotonic()
        with await asyncio.to_thread(file.open, "rb") as body:
            form = aiohttp.FormData()
            form.add_field("file", body, filename=file.name, content_type="text/csv")
            async with self._http.post(f"{self._url}/upload", data=form) as answer:
                at = time.monotonic()
                document = await answer.json(content_type=None)
        if answer.status != 202:
            msg = f"the upload was answered by {answer.status}: {document}"
            raise BenchFailed(msg)
        return Accepted(document["uploadId"], at - began, at)

    async def end(self, upload_id: str) -> dict[str, Any]:
        """Wait for the end of a load and return the status.

        :raises BenchFailed: when it does not end as completed.
        """
        while True:
            async with self._http.get(
                f"{self._url}/upload/{upload_id}/status", params={"wait": _WAIT_SECONDS}
            ) as answer:
                status: dict[str, Any] = await answer.json(content_type=None)
            if answer.status != 200 or status["status"] in {"failed", "cancelled", "expired"}:
                msg = f"the load ended as {status}"
                raise BenchFailed(msg)
            if status["status"] == "completed":
                return status

    async def cancel(self, upload_id: str) -> None:
        """Cancel an upload, which removes its data."""
        async with self._http.delete(f"{self._url}/upload/{upload_id}") as answer:
            if answer.status not in {200, 202}:
                msg = f"cancelling was answered by {answer.status}: {await answer.text()}"
                raise BenchFailed(msg)


async def curl(url: str, file: Path) -> Accepted:
    """Upload a file by a curl of its own.

    :raises BenchFailed: when it is not answered by 202.
    """
    program = shutil.which("curl")
    if program is None:
        msg = "curl is not installed"
        raise BenchFailed(msg)
    # The answer, then two figures on a line of their own. Without Expect: 100-continue, as most clients.
    options = [
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        "-H",
        "Expect:",
        "--write-out",
        "\n%{http_code} %{time_total}",
    ]
    process = await asyncio.create_subprocess_exec(
        program, *options, "-F", f"file=@{file};type=text/csv", f"{url}/upload", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    at = time.monotonic()
    body, _, figures = output.decode(errors="replace").rpartition("\n")
    if process.returncode or not figures.startswith("202 "):
        msg = f"curl ended with {process.returncode}: {figures} {body}"
        raise BenchFailed(msg)
    return Accepted(json.loads(body)["uploadId"], float(figures.split()[1]), at)
