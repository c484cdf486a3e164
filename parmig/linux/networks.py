# SPDX-License-Identifier: Apache-2.0
"""Network devices: the addresses of this host, and by which device the kernel reaches another (rtnetlink(7))."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Annotated

import msgspec
import psutil
from msgspec import Meta

BYTES_PER_MBIT = 125_000

MAX_ADDRESSES = 32
"""Of a host that are considered: sixteen network devices with two each."""

_NLMSGHDR = struct.Struct("=IHHII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_RTATTR = struct.Struct("=HH")
_RTM_NEWROUTE, _RTM_GETROUTE, _NLM_F_REQUEST = 24, 26, 1
_RTA_DST, _RTA_SRC, _RTA_OIF = 1, 2, 4  # linux/rtnetlink.h


class DeviceAddress(msgspec.Struct, frozen=True):
    """An address of a network device.

    Attributes:
        device: number of the device on its host.
        address: IPv4 or IPv6, without brackets.
        bytes_per_s: speed of the device; 0: it does not say.
    """

    device: Annotated[int, Meta(ge=1, lt=1 << 31)]
    address: Annotated[str, Meta(pattern=r"\A[0-9a-fA-F.:]{2,45}\Z")]
    bytes_per_s: Annotated[int, Meta(ge=0, lt=1 << 50)] = 0


def own_addresses() -> list[DeviceAddress]:
    """The addresses of all devices of this host that are up, IPv4 first; none of loopback or of a single link."""
    states = psutil.net_if_stats()
    found = []
    for name, entries in psutil.net_if_addrs().items():
        state = states.get(name)
        if state is None or not state.isup:
            continue
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6) or "%" in entry.address:
                continue
            address = ipaddress.ip_address(entry.address)
            if not (address.is_loopback or address.is_link_local):
                speed = max(0, state.speed) * BYTES_PER_MBIT
                found.append(DeviceAddress(socket.if_nametoindex(name), entry.address, speed))
    return sorted(found, key=lambda one: (":" in one.address, one.device, one.address))[:MAX_ADDRESSES]


def device_to(remote: str, local: str) -> int | None:
    """The number of the device by which packets from *local*, an address of this host, leave to *remote*.

    None: there is no route, or the addresses are of two families.
    """
    family = socket.AF_INET6 if ":" in remote else socket.AF_INET
    try:
        numbers = [socket.inet_pton(family, address) for address in (remote, local)]
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
            netlink.settimeout(1)
            bits = 8 * len(numbers[0])
            body = _RTMSG.pack(family, bits, bits, 0, 0, 0, 0, 0, 0)
            for kind, number in zip((_RTA_DST, _RTA_SRC), numbers, strict=True):
                body += _RTATTR.pack(_RTATTR.size + len(number), kind) + number  # addresses need no padding
            netlink.send(_NLMSGHDR.pack(_NLMSGHDR.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body)
            answer = netlink.recv(1 << 16)
    except OSError:
        return None
    return _device_of(answer)


def _device_of(answer: bytes) -> int | None:
    """The outgoing device that a message of the kernel names; None: it is an error or has none."""
    _, kind, _, _, _ = _NLMSGHDR.unpack_from(answer)
    at = _NLMSGHDR.size + _RTMSG.size
    while kind == _RTM_NEWROUTE and at + _RTATTR.size <= len(answer):
        size, attribute = _RTATTR.unpack_from(answer, at)
        if attribute == _RTA_OIF:
            return int(struct.unpack_from("=I", answer, at + _RTATTR.size)[0])
        at += max(_RTATTR.size, -(-size // 4) * 4)
    return None
