"""One try to deliver a webhook: one HTTP request, bounded in every way."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import aiohttp
import structlog
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from stream_api import __version__
from stream_api.config import KIB, Settings
from stream_api.webhooks.guard import RECEIVE_BUFFER_BYTES, Guard

log = structlog.get_logger()

#: Of the answer's body: nothing in it matters, but a receiver likes to see it taken.
ANSWER_BYTES: Final = 64 * KIB
_CHUNK_BYTES: Final = 16 * KIB
#: Of one connection and all that belongs to it (measured with TLS, 64 at once: 414 KiB, of which asyncio's buffer for
#: what is to be decrypted is 256).
_CONNECTION_BYTES: Final = 448 * KIB
#: A receiver cannot put a retry off for longer than this.
RETRY_AFTER_SECONDS: Final = 3600.0
#: A name server that does not answer holds a thread for half a minute, long after the try is over: the threads by which
#: the process resolves the names of its own services are not for that. They are started when they are needed.
_RESOLVER_THREADS: Final = 32


def memory_bytes(settings: Settings) -> int:
    """What all tries of this process hold at most: a connection, its receive buffer, and what is read of the answer."""
    # aiohttp stops reading at twice its limit, and one read more may have come by then.
    each = _CONNECTION_BYTES + 2 * RECEIVE_BUFFER_BYTES + 3 * _CHUNK_BYTES
    return settings.webhook_concurrency * each


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a try has ended.

    :param error: a code and a sentence, fit to be shown to whoever gave the URL: nothing of our network is in it;
        `None` when the receiver has taken the webhook.
    :param final: the receiver wants no further try.
    :param retry_after_seconds: the least time until the next, if the receiver has named one.
    """

    error: str | None = None
    final: bool = False
    retry_after_seconds: float | None = None


class Resolver(AbstractResolver):
    """Names to addresses by the system's resolver, in threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="webhook-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a host.

        :raises OSError: it has none, or nobody can be asked.
        """
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
        )
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=family, proto=proto, flags=0)
            for family, _, proto, _, address in found
        ]

    async def close(self) -> None:
        """Let the threads end; does not wait for those that are asking."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Sender:
    """Makes tries. Each has a connection of its own: no redirects, no proxies of the environment, no cookies.

    :param resolver: stays the caller's.
    """

    def __init__(self, settings: Settings, resolver: AbstractResolver) -> None:
        self._allowed = settings.webhook_allowed
        self._connect_seconds = settings.webhook_connect_timeout_seconds
        self._seconds = settings.webhook_timeout_seconds
        self._resolver = resolver

    async def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> Attempt:
        """Post a body once."""
        target = _target(url)
        if target is None:
            return Attempt("webhook_refused: the URL is not one that webhooks are sent to")
        guard = Guard(self._allowed, target.raw_host or "")
        try:
            async with asyncio.timeout(self._seconds):
                with _explained(guard, loggable(url), self._connect_seconds):
                    return await self._post(target, body, headers, guard)
        except TimeoutError:
            return Attempt(f"webhook_timeout: no whole answer within {self._seconds:g} s")
        except _Undelivered as undelivered:
            return Attempt(str(undelivered))

    async def _post(self, url: URL, body: bytes, headers: Mapping[str, str], guard: Guard) -> Attempt:
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            socket_factory=guard.open_socket,
            use_dns_cache=False,
            force_close=True,
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                read_bufsize=_CHUNK_BYTES,
            ) as session,
            session.post(
                url,
                data=body,
                headers={
                    hdrs.CONTENT_TYPE: "application/json",
                    hdrs.USER_AGENT: f"stream-api/{__version__}",
                    hdrs.ACCEPT_ENCODING: "identity",
                    **headers,
                },
                allow_redirects=False,
            ) as answer,
        ):
            left = ANSWER_BYTES
            while left > 0 and (chunk := await answer.content.read(min(left, _CHUNK_BYTES))):
                left -= len(chunk)
            # What is left of it is not read: the connection ends here.
            answer.close()
            return _judge(answer)


def _target(url: str) -> URL | None:
    """The URL, if it is one that a webhook may be sent to."""
    try:
        target = URL(url)
        usable = target.scheme in {"http", "https"} and bool(target.raw_host) and target.port is not None
    except ValueError:
        return None
    return target if usable and target.user is None and target.password is None else None


class _Undelivered(Exception):
    """The request did not come to an answer; the message is an `Attempt.error`."""


@contextmanager
def _explained(guard: Guard, url: str, connect_seconds: float) -> Iterator[None]:
    """Puts into words what aiohttp raises, without the addresses that are in its own.

    :raises _Undelivered: for whatever is the receiver's, its network's or its URL's.
    """
    try:
        yield
    except aiohttp.ConnectionTimeoutError as exc:
        raise _Undelivered(f"webhook_timeout: no connection within {connect_seconds:g} s") from exc
    except aiohttp.InvalidURL as exc:
        # Such as http://127.1, which is an address to some libraries and a name to others.
        raise _Undelivered("webhook_refused: the URL's host is no name and no plain address") from exc
    except aiohttp.ClientConnectorDNSError as exc:
        raise _Undelivered("webhook_unreachable: the host's name has no address") from exc
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as exc:
        raise _Undelivered(f"webhook_unreachable: TLS failed ({type(exc).__name__})") from exc
    except aiohttp.ClientConnectorError as exc:
        if guard.refused:
            log.warning("webhooks.address_refused", url=url, addresses=guard.refused)
            message = "webhook_refused: the host is not on the public internet (STREAM_API_WEBHOOK_ALLOW)"
            raise _Undelivered(message) from exc
        name = errno.errorcode.get(exc.os_error.errno or 0, "no code")
        raise _Undelivered(f"webhook_unreachable: the connection was not made ({name})") from exc
    except TimeoutError:
        raise
    except (aiohttp.ClientError, OSError, ValueError) as exc:  # a ValueError is of a name that cannot be one
        raise _Undelivered(f"webhook_broken: there was no whole answer ({type(exc).__name__})") from exc


def _judge(answer: aiohttp.ClientResponse) -> Attempt:
    status = answer.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Attempt()
    if status == HTTPStatus.GONE:
        return Attempt("webhook_gone: the receiver answered 410 and wants no more", final=True)
    retry_after = retry_after_seconds(answer.headers.get(hdrs.RETRY_AFTER, ""), now=datetime.now(UTC))
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return Attempt(
            f"webhook_redirected: the receiver answered {status}, and redirects are not followed",
            retry_after_seconds=retry_after,
        )
    return Attempt(f"webhook_rejected: the receiver answered {status}", retry_after_seconds=retry_after)


def retry_after_seconds(value: str, *, now: datetime) -> float | None:
    """What `Retry-After` asks for, at most an hour; `None` for what is no number and no date (RFC 9110, 10.2.3)."""
    text = value.strip()
    if text.isascii() and text.isdecimal():
        # Longer ones are as good as this one, and int() has a limit.
        return min(float(text[:20]), RETRY_AFTER_SECONDS)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return min(max((at - now).total_seconds(), 0.0), RETRY_AFTER_SECONDS)


def loggable(url: str) -> str:
    """A URL for the log: without user, query and fragment, which hold secrets."""
    try:
        parsed = URL(url)
        return str(parsed.with_user(None).with_query(None).with_fragment(None))
    except ValueError:
        return "(not a URL)"
