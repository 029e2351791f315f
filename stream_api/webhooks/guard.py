"""The guard against request forgery: webhooks go to the public internet, and nowhere else.

Who uploads a file chooses a URL, and we call it from inside a network that the uploader may not reach. So every address
is judged, at the last possible place: where the socket for it is made. What DNS said before, how a literal was written
and what the URL's parser made of it do not matter there. See docs/decisions.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final

from stream_api.config import KIB, Allowed

#: Of each socket; the kernel takes twice that, for its own needs too.
RECEIVE_BUFFER_BYTES: Final = 64 * KIB

#: What IANA has set aside of IPv4: https://www.iana.org/assignments/iana-ipv4-special-registry/
_NOT_PUBLIC_4: Final = tuple(
    (IPv4Network(network), what)
    for network, what in {
        "0.0.0.0/8": "this network, unspecified",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared by a provider's customers, metadata",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "metadata (a public address that Azure answers itself)",
        "169.254.0.0/16": "link-local, metadata",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "protocol assignments, metadata",
        "192.0.2.0/24": "documentation",
        "192.31.196.0/24": "AS112",
        "192.52.193.0/24": "AMT",
        "192.88.99.0/24": "6to4 relay",
        "192.168.0.0/16": "private",
        "192.175.48.0/24": "AS112",
        "198.18.0.0/15": "benchmarking",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved, broadcast",
    }.items()
)
#: All that IANA gives to the public (https://www.iana.org/assignments/ipv6-address-space/): outside of it are loopback,
#: unspecified, unique local with its metadata, link-local, multicast, and the first of those that hold an IPv4 address:
#: v4-mapped, v4-compatible, and NAT64 (64:ff9b::/96, 64:ff9b:1::/48).
_PUBLIC_6: Final = IPv6Network("2000::/3")
#: Of that, what is set aside: https://www.iana.org/assignments/iana-ipv6-special-registry/
_NOT_PUBLIC_6: Final = tuple(
    (IPv6Network(network), what)
    for network, what in {
        "2001::/23": "protocol assignments, Teredo",
        "2001:db8::/32": "documentation",
        "2002::/16": "6to4",
        "2620:4f:8000::/48": "AS112",
        "3fff::/20": "documentation",
    }.items()
)


#: What is read of one connection, whatever it is: TLS, headers, the body, and what stands beside or before these and is
#: counted by nobody else (answers of 1xx without end, extensions of chunks, trailers).
MOST_BYTES: Final = 192 * 1024
#: At once: the event loop would read 256 KiB, and count as too long what nobody would have read.
_READ_BYTES: Final = 16 * 1024


class AnswerTooLong(ConnectionError):
    """A receiver sends more than anybody wants to read."""


class BoundedSocket(socket.socket):
    """A socket that gives out `MOST_BYTES`, some at a time, and then fails.

    The event loop reads by `recv` and `recv_into`, also below TLS.
    """

    left_bytes = MOST_BYTES

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As that of `socket`. :raises AnswerTooLong: the receiver has sent too much."""
        data = super().recv(min(size, _READ_BYTES), flags)
        self._count(len(data))
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        """As that of `socket`. :raises AnswerTooLong: the receiver has sent too much."""
        received = super().recv_into(buffer, min(size or len(buffer), _READ_BYTES), flags)
        self._count(received)
        return received

    def _count(self, received: int) -> None:
        self.left_bytes -= received
        if self.left_bytes < 0:
            raise AnswerTooLong(errno.EMSGSIZE, "the receiver sends too much")


class AddressRefused(OSError):
    """A webhook may not go to an address. An `OSError`, so that the next address of the same host is tried."""


def why_refused(address: str, allowed: Sequence[IPv4Network | IPv6Network] = ()) -> str | None:
    """What speaks against an address; `None` when a webhook may go there.

    :param address: as it is about to be connected to.
    :param allowed: networks that are fine though they are not public.
    """
    try:
        judged = ip_address(address)
    except ValueError:
        return "not an address"
    if any(judged in network for network in allowed):
        return None
    return _why_not_public(judged)


def _why_not_public(address: IPv4Address | IPv6Address) -> str | None:
    if isinstance(address, IPv4Address):
        what = next((what for network, what in _NOT_PUBLIC_4 if address in network), None)
    elif address not in _PUBLIC_6 or address.scope_id is not None:
        what = "not public"
    else:
        what = next((what for network, what in _NOT_PUBLIC_6 if address in network), None)
    # The tables are as new as this file; Python's may be newer.
    return what or (None if address.is_global else "not public")


class Guard:
    """Makes the sockets of one try, for `aiohttp.TCPConnector(socket_factory=…)`.

    :param host: of the URL, as it is resolved. If that is allowed by its name, all its addresses are.
    """

    def __init__(self, allowed: Allowed, host: str) -> None:
        self._allowed = allowed
        self._host_is_allowed = host.lower().rstrip(".") in allowed.hosts
        #: The addresses that were refused, and why; for our own log.
        self.refused: list[str] = []

    def open_socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        """A socket for an address of `getaddrinfo`, which is then connected to that very address.

        :raises AddressRefused: it may not be connected to.
        """
        family, kind, protocol, _, address = addr_info
        why = None if self._host_is_allowed else why_refused(str(address[0]), self._allowed.networks)
        if why is not None:
            self.refused.append(f"{address[0]} ({why})")
            raise AddressRefused(errno.EACCES, "the address is not public")
        made = BoundedSocket(family, kind, protocol)
        # Before connecting, and so for good: a receiver that pours must not fill the kernel's memory, which is ours.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        return made
