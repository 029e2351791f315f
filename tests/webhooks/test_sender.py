"""One try: where it goes and where it does not, whatever the URL and DNS say."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from structlog.testing import capture_logs

from stream_api.config import Settings
from stream_api.webhooks.guard import why_refused
from stream_api.webhooks.sender import Attempt, Resolver, Sender, loggable, retry_after_seconds
from tests.support.patience import PATIENCE_SECONDS
from tests.support.settings import change
from tests.webhooks.conftest import LOOPBACK, Receiver, receiving

REFUSED = "webhook_refused: the host is not on the public internet (STREAM_API_WEBHOOK_ALLOW)"


class Answers(AbstractResolver):
    """A name server that answers with these, one after the other; the last stands."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        addresses = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=6, flags=0)
            for address in addresses
        ]

    async def close(self) -> None: ...


def sender(resolver: AbstractResolver, **values: Any) -> Sender:
    return Sender(change(Settings(webhook_timeout_seconds=5, webhook_connect_timeout_seconds=2), **values), resolver)


async def send(resolver: AbstractResolver, url: str, **values: Any) -> Attempt:
    return await sender(resolver, **values).send(url, b"{}", {})


def port_of(receiver: Receiver) -> int:
    return int(receiver.url.rpartition(":")[2])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "localhost..",
        "127.1",
        "127.0.0.1.",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.01",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1%25lo]",
        "0",
        "0.0.0.0",  # noqa: S104 - called, not bound
        "１２７.0.0.1",  # noqa: RUF001 - IDNA makes digits of them
        "ⓛocalhost",
        "127。0。0。1",
    ],
)
async def test_every_way_to_write_this_machine_is_refused(receiver: Receiver, host: str) -> None:
    resolver = Resolver()
    attempt = await send(resolver, f"http://{host}:{port_of(receiver)}/")
    await resolver.close()
    assert attempt.error is not None
    # Some are no host to anybody: not to the URL's parser, or not to the resolver of this machine.
    assert attempt.error.startswith(("webhook_refused: ", "webhook_unreachable: the host's name has no address",
                                     "webhook_broken: there was no whole answer (UnicodeError)"))  # fmt: skip
    assert receiver.received == []
    assert "127" not in attempt.error


@pytest.mark.parametrize(
    "url", ["ftp://example.com/", "file:///etc/passwd", "unix:///run/x", "http://user:pass@example.com/",
            "http://user@example.com/", "//example.com", "http:///x", "http://[::1", "http://example.com:0x50/", ""],
)  # fmt: skip
async def test_other_urls_are_not_even_looked_up(url: str) -> None:
    resolver = Answers(["127.0.0.1"])
    attempt = await send(resolver, url, webhook_allow="127.0.0.0/8")
    assert attempt.error == "webhook_refused: the URL is not one that webhooks are sent to"
    assert resolver.asked == []


async def test_a_name_that_changes_between_the_check_and_the_connection(receiver: Receiver) -> None:
    resolver = Answers(["8.8.8.8"], ["127.0.0.1"])
    # Somebody has looked, and found it fine.
    (first,) = await resolver.resolve("rebinding.example")
    assert why_refused(first["host"]) is None
    with capture_logs() as logs:
        attempt = await send(resolver, f"http://rebinding.example:{port_of(receiver)}/hook?t=s3cret")
    assert attempt.error == REFUSED
    assert receiver.received == []
    (event,) = [each for each in logs if each["event"] == "webhooks.address_refused"]
    assert event["addresses"] == ["127.0.0.1 (loopback)"]
    assert "s3cret" not in str(event)


async def test_a_name_that_changes_between_two_tries() -> None:
    async with receiving("127.0.0.2") as first, receiving("127.0.0.1", port_of(first)) as second:
        tries = sender(Answers(["127.0.0.2"], ["127.0.0.1"]), webhook_allow="127.0.0.2")
        url = f"http://rebinding.example:{port_of(first)}/"
        assert (await tries.send(url, b"{}", {})).error is None
        assert (await tries.send(url, b"{}", {})).error == REFUSED
        assert (len(first.received), len(second.received)) == (1, 0)


async def test_of_several_addresses_only_those_that_pass_are_connected_to() -> None:
    async with receiving("127.0.0.2") as good, receiving("127.0.0.1", port_of(good)) as bad:
        resolver = Answers(["127.0.0.1", "10.0.0.1", "127.0.0.2"])
        attempt = await send(resolver, f"http://both.example:{port_of(good)}/", webhook_allow="127.0.0.2")
        assert attempt.error is None
        assert (len(good.received), len(bad.received)) == (1, 0)
        assert good.received[0].headers["host"] == f"both.example:{port_of(good)}"


async def test_version_6_of_the_protocol_is_judged_and_spoken_too() -> None:
    try:
        async with receiving("::1") as receiver:
            url = f"http://[::1]:{port_of(receiver)}/"
            assert (await send(Answers([]), url)).error == REFUSED
            assert receiver.received == []
            assert (await send(Answers([]), url, webhook_allow="::1")).error is None
            assert len(receiver.received) == 1
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")


async def test_a_host_is_allowed_by_its_name(receiver: Receiver) -> None:
    resolver = Answers(["127.0.0.1"])
    for host, error in (("receiver.internal", None), ("RECEIVER.internal.", None), ("other.internal", REFUSED)):
        url = f"http://{host}:{port_of(receiver)}/"
        assert (await send(resolver, url, webhook_allow="receiver.internal")).error == error
    assert len(receiver.received) == 2


async def test_a_name_that_resolves_to_no_address_at_all() -> None:
    assert (await send(Answers(["not-an-address"]), "http://strange.example/")).error == REFUSED


async def test_proxies_of_the_environment_are_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    assert (await send(Answers(["127.0.0.1"]), receiver.url, webhook_allow="127.0.0.0/8")).error is None


async def test_cookies_are_not_kept(receiver: Receiver) -> None:
    async def set_cookie(request: web.Request) -> web.Response:
        return web.Response(status=500, headers={"set-cookie": "a=b"})

    receiver.answers = [set_cookie]
    tries = sender(Answers(["127.0.0.1"]), webhook_allow="127.0.0.0/8")
    for _ in range(2):
        await tries.send(f"http://cookies.example:{port_of(receiver)}/", b"{}", {})
    assert len(receiver.received) == 2
    assert all("cookie" not in request.headers for request in receiver.received)


async def test_a_connection_that_nobody_accepts_is_timed_out() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:  # the queue is full after one or two of them
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        attempt = await send(
            Answers(["127.0.0.1"]),
            f"http://127.0.0.1:{full.getsockname()[1]}/",
            webhook_allow="127.0.0.0/8",
            webhook_connect_timeout_seconds=0.3,
        )
        for each in waiting:
            each.close()
    assert attempt.error == "webhook_timeout: no connection within 0.3 s"


async def test_a_name_server_that_does_not_answer_is_timed_out() -> None:
    class Silent(Answers):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            await asyncio.Event().wait()
            return []

    attempt = await send(Silent(), "http://silent.example/", webhook_connect_timeout_seconds=0.2)
    assert attempt.error == "webhook_timeout: no connection within 0.2 s"


async def test_a_server_that_speaks_no_tls(receiver: Receiver) -> None:
    url = receiver.url.replace("http://", "https://")
    attempt = await send(Answers(["127.0.0.1"]), url, webhook_allow="127.0.0.0/8")
    assert attempt.error == "webhook_unreachable: TLS failed (ClientConnectorSSLError)"


NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("3601", 3600),
        ("9" * 5000, 3600),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(days=2), usegmt=True), 0),
        (format_datetime(NOW + timedelta(days=2), usegmt=True), 3600),
        ("Tue, 24 Nov 2026 12:00:30 -0000", 30),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("٣", None),
        ("Tue, 99 Nov 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_seconds(value, now=NOW) == seconds


@pytest.mark.parametrize(
    ("url", "logged"),
    [
        ("https://u:p@example.com:8443/a/b?token=1#x", "https://example.com:8443/a/b"),
        ("http://example.com", "http://example.com"),
        ("http://[::1", "(not a URL)"),
    ],
)
def test_urls_are_logged_without_what_is_secret(url: str, logged: str) -> None:
    assert loggable(url) == logged


@asynccontextmanager
async def resolving() -> AsyncIterator[Resolver]:
    resolver = Resolver()
    yield resolver
    await resolver.close()


@asynccontextmanager
async def pouring(*pieces: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """A receiver that sends the first piece and then the others again and again; and how much of them was taken."""
    sent = [0]

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(pieces[0])
            while True:
                for piece in pieces[1:]:
                    writer.write(piece)
                    await writer.drain()
                    sent[0] += len(piece)
        writer.close()

    server = await asyncio.start_server(pour, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", sent


@pytest.mark.parametrize(
    "pieces",
    [
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 100),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1;" + b"x" * 2000 + b"\r\na\r\n",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: " + b"x" * 1000 + b"\r\n"),
    ],
    ids=["103", "100", "extensions", "trailers"],
)
async def test_what_stands_beside_the_answer_is_bounded_too(pieces: tuple[bytes, ...]) -> None:
    async with pouring(*pieces) as (url, sent), resolving() as resolver:
        async with asyncio.timeout(PATIENCE_SECONDS):
            attempt = await send(resolver, url, webhook_allow=LOOPBACK)
        assert attempt.error is not None
        assert attempt.error.startswith("webhook_broken")
        # What was taken, and what lies in the buffers of both sockets.
        assert sent[0] < 8 * 1024 * 1024


async def test_a_large_answer_is_still_an_answer() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
    async with pouring(head, b"x" * 65536) as (url, _), resolving() as resolver:
        assert await send(resolver, url, webhook_allow=LOOPBACK) == Attempt()
