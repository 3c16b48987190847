"""Which addresses on the network an image may come from: public ones, as lists may come from somebody else.

A name in a list could otherwise lead to this machine, its neighbours, or the metadata service of its cloud. Addresses
are judged when a connection is made to them, so a name that is answered differently the second time gains nothing.
Source: IANA's special-purpose address registries, as the standard library's `ipaddress` has them.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, Final

__all__ = ["PrivateAddressError", "is_public", "public_socket"]

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")


class PrivateAddressError(OSError):
    """The address isn't public."""


def is_public(address: str) -> bool:
    """Whether `address` can be reached by everybody: none of this machine, its network, a link or a group.

    An IPv6 address that stands for an IPv4 one is judged by that.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if found.is_site_local or found in _IPV4_COMPATIBLE:
            return False
    return found.is_global and not found.is_multicast


def public_socket(info: tuple[Any, ...]) -> socket.socket:
    """A socket for the address that `info`, of `getaddrinfo`, names, as aiohttp asks for one to connect with.

    Raises `PrivateAddressError`.
    """
    family, kind, protocol, _, address = info
    if not is_public(address[0]):
        raise PrivateAddressError("it leads to an address that isn't public")
    return socket.socket(family, kind, protocol)
