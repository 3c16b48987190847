from __future__ import annotations

import socket

import pytest

from batchcl.reading.addresses import PrivateAddressError, is_public, public_socket


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "224.0.0.1", "239.1.2.3", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::", "::7f00:1"),
        *("2001:0:4136:e378:8000:63bf:80ff:fffe",),
    ],
)
def test_addresses_that_not_everybody_reaches_are_private(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


def test_a_socket_is_made_for_public_addresses_only() -> None:
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    with pytest.raises(PrivateAddressError, match="isn't public"):
        public_socket((*kind, ("127.0.0.1", 80)))
    with public_socket((*kind, ("8.8.8.8", 80))) as made:
        assert made.family == socket.AF_INET
