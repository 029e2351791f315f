"""Forms as bytes, so that they can be wrong, and clients that can be slow or die."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

BOUNDARY = b"----------------------boundary"
HEADERS = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}
END = b"--" + BOUNDARY + b"--\r\n"


def field(name: str, value: bytes, *headers: str, file_name: str | None = None) -> bytes:
    """One form field with its boundary in front."""
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if file_name is not None:
        disposition += f'; filename="{file_name}"'
    lines = [disposition, *headers]
    return b"--" + BOUNDARY + b"\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + value + b"\r\n"


def file(value: bytes) -> bytes:
    """The file."""
    return field("file", value, "Content-Type: text/csv", file_name="rows.csv")


@dataclass
class RawClient:
    """A client that writes what it is told."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def start(
        self, content_length: int | None, *, query: str = "", kind: str = HEADERS["Content-Type"], **headers: str
    ) -> None:
        """Send the head of an upload; without a length its body is to be sent in HTTP's chunks."""
        lines = [
            f"POST /upload{query} HTTP/1.1",
            "Host: test",
            "Transfer-Encoding: chunked" if content_length is None else f"Content-Length: {content_length}",
            f"Content-Type: {kind}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await self.writer.drain()

    async def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers in lower case, and document of the answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, json.loads(body)


@asynccontextmanager
async def raw_client(port: int) -> AsyncIterator[RawClient]:
    """A connection; at the end it is reset if it is still open, as by a client that is killed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


async def until(condition: Callable[[], object]) -> None:
    """Wait until something holds that nobody announces; the test's time-out is the limit."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
