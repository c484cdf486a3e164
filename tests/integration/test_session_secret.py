# SPDX-License-Identifier: Apache-2.0
"""Whole migrations, and who learns the secret of their session: what crosses the network is recorded."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from parmig.config import ReceiveConfig, SendConfig
from parmig.transport.transport import parse_uri
from tests.integration.sides import Migration, guests, until
from tests.keys import keys

QUICK = "memory=32MiB,rate=20MiB/s"
ETH_P_ALL = 3  # linux/if_ether.h
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
SHORT = (
    (0x80, 0, 0, 0),  # the length of the packet
    (0x35, 3, 0, 4096),  # that is full of pages: drop it
    (0x30, 0, 0, 0xFFFFF004),  # SKF_AD_PKTTYPE of linux/filter.h
    (0x15, 1, 0, socket.PACKET_OUTGOING),  # each packet of loopback is there twice: drop one
    (0x06, 0, 0, 0xFFFFFFFF),  # take all of it
    (0x06, 0, 0, 0),  # drop it
)
"""A program of the kernel's packet filter (linux/filter.h). What this process would not look at must not fill its
buffer: other tests send gigabytes by loopback meanwhile."""
PROGRAM = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in SHORT))


@contextmanager
def recorded() -> Iterator[list[bytes]]:
    """The packets on loopback meanwhile that are not full of pages."""
    packets: list[bytes] = []
    done = os.eventfd(0)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(SHORT), ctypes.addressof(PROGRAM)))
        sock.bind(("lo", ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: nothing is dropped

        def record() -> None:
            while done not in select.select([sock, done], [], [])[0]:
                packets.append(sock.recv(1 << 16))

        thread = threading.Thread(target=record)
        thread.start()
        try:
            yield packets
        finally:
            os.eventfd_write(done, 1)
            thread.join()
            os.close(done)


def port_of(packet: bytes) -> set[int]:
    """The two ports of a packet of TCP over IPv4."""
    header = (packet[0] & 15) * 4
    return {int.from_bytes(packet[header : header + 2], "big"), int.from_bytes(packet[header + 2 : header + 4], "big")}


@pytest.mark.skipif(os.geteuid() != 0, reason="recording packets needs root")
@pytest.mark.parametrize("with_keys", [False, True], ids=["plain", "keys"])
@pytest.mark.parametrize("transport", ["tcp", "zmq"])
def test_the_secret_crosses_the_control_channel_only(transport: str, with_keys: bool) -> None:
    directory = str(keys()) if with_keys else ""
    config = SendConfig(workers=2, verify="after", transport=transport, keys=directory)
    receive = ReceiveConfig(listen="tcp://127.0.0.1:0", keys=directory)
    with (
        recorded() as packets,
        guests(QUICK) as (source, destination),
        Migration(source, destination, config, receive=receive) as migration,
    ):
        receiver = migration.receiver
        assert receiver is not None
        session = until(lambda: receiver._session, "the session")
        secret = session._listeners.token
        report, received = migration.sent(), migration.received()
        control = parse_uri(migration.uri).port
    assert (report.error, report.status, report.verified) == (None, "completed", True)
    kinds = [side.encryption and (side.encryption.kind, side.encryption.pages) for side in (report, received)]
    pages = "curve" if transport == "zmq" else "tls"
    assert kinds == ([("tls", pages)] * 2 if with_keys else [None, None])
    tellers = [packet for packet in packets if secret in packet or secret.hex().encode() in packet]
    assert len(tellers) == (0 if with_keys else 1)
    assert all(control in port_of(packet) for packet in tellers)
    assert len(packets) > 20
