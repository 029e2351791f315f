"""The guard: which addresses are public, however they are written, and that a socket is never made for others."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_api.config import Allowed
from stream_api.webhooks.guard import AddressRefused, Guard, why_refused

NOWHERE = Allowed(frozenset(), ())

PUBLIC = ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0",
          "198.17.255.255", "198.20.0.0", "223.255.255.255", "168.63.129.15", "2606:4700:4700::1111",
          "2a00:1450:4001:80b::200e", "2001:4860:4860::8888", "2003::1", "3ffe::1"]  # fmt: skip

REFUSED = {
    "unspecified": ["0.0.0.0", "0.1.2.3", "::"],  # noqa: S104 - judged, not bound
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fdff::1", "fec0::1"],
    "link-local": ["169.254.0.1", "fe80::1", "fe80::1%1", "febf::1"],
    "metadata": ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"],
    "carrier": ["100.64.0.0", "100.127.255.255"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "192.0.0.8", "100::1", "4000::1", "5f00::1", "8000::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarking": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
    "relays": ["192.88.99.1", "192.31.196.1", "192.52.193.1", "192.175.48.1", "2620:4f:8000::1"],
    "v4-mapped": ["::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:a9fe:a9fe"],
    "v4-compatible": ["::127.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1"],
    "NAT64": ["64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b:1::1", "64:ff9b:1:ffff::7f00:1"],
    "6to4": ["2002:7f00:1::1", "2002:a9fe:a9fe::", "2002:808:808::1"],
    "Teredo": ["2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "ORCHID": ["2001:10::1", "2001:20::1"],
    "zone": ["2606:4700:4700::1111%eth0"],
    "nonsense": ["", "localhost", "127.1", "0x7f000001", "2130706433", "0127.0.0.1", "127.0.0.1.", "[::1]"],
}


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    assert why_refused(address) is None


@pytest.mark.parametrize("address", [address for addresses in REFUSED.values() for address in addresses])
def test_all_others_are_refused(address: str) -> None:
    assert why_refused(address)


#: By the book, and not by our tables: what may never be reached, in whatever it is wrapped.
INSIDE = [
    IPv4Network(text)
    for text in ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
                 "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4")
]  # fmt: skip
inside = st.sampled_from(INSIDE).flatmap(
    lambda network: st.integers(int(network[0]), int(network[-1])).map(IPv4Address)
)


def _wrapped(address: IPv4Address, rest: int) -> list[IPv6Address]:
    """All the ways to write an IPv4 address as an IPv6 one that RFCs know, but for prefixes of an operator's own."""
    low = int(address)
    return [
        IPv6Address(low),  # v4-compatible, RFC 4291
        IPv6Address((0xFFFF << 32) | low),  # v4-mapped, RFC 4291
        IPv6Address((0xFFFF << 48) | low),  # v4-translated, RFC 2765
        IPv6Address((0x64FF9B << 96) | low),  # NAT64, RFC 6052
        IPv6Address((0x64FF9B0001 << 80) | (rest << 32) & (2**80 - 1) | low),  # NAT64, RFC 8215
        IPv6Address((0x2002 << 112) | (low << 80) | rest),  # 6to4, RFC 3056
        IPv6Address((0x20010000 << 96) | (rest << 32) | (low ^ 0xFFFFFFFF)),  # Teredo, RFC 4380
        IPv6Address((0x20010000 << 96) | (low << 64) | rest),  # Teredo's server
    ]


@given(address=inside, rest=st.integers(0, 2**48 - 1))
def test_nothing_that_unwraps_to_an_inner_address_passes(address: IPv4Address, rest: int) -> None:
    for written in (address, *_wrapped(address, rest)):
        assert why_refused(str(written)), written


@given(st.ip_addresses())
def test_nothing_passes_that_python_knows_not_to_be_global(address: IPv4Address | IPv6Address) -> None:
    if why_refused(str(address)) is None:
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_reserved
        if isinstance(address, IPv6Address):
            assert (address.ipv4_mapped, address.sixtofour, address.teredo) == (None, None, None)


def test_networks_that_are_allowed() -> None:
    allowed = [ip_network("127.0.0.0/8"), ip_network("::1"), ip_network("10.1.0.0/16")]
    for address in ("127.0.0.1", "127.9.9.9", "::1", "10.1.255.255"):
        assert why_refused(address, allowed) is None
    for address in ("10.2.0.1", "::2", "192.168.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "not an address"):
        assert why_refused(address, allowed)


def test_a_socket_is_made_for_what_passes_only() -> None:
    guard = Guard(NOWHERE, "example.com")
    made = guard.open_socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("8.8.8.8", 443)))
    made.close()
    assert guard.refused == []
    with pytest.raises(AddressRefused) as caught:
        guard.open_socket((socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("fd00::1", 443, 0, 0)))
    assert "fd00" not in str(caught.value)
    assert guard.refused == ["fd00::1 (not public)"]


@pytest.mark.parametrize("host", ["Receiver.Internal", "receiver.internal."])
def test_a_host_that_is_allowed_by_its_name_may_be_anywhere(host: str) -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("10.0.0.1", 80))
    allowed = Allowed(frozenset({"receiver.internal"}), ())
    Guard(allowed, host).open_socket(info).close()
    for other in ("internal", "a.receiver.internal", "receiver.internal.example.com"):
        with pytest.raises(AddressRefused):
            Guard(allowed, other).open_socket(info)
