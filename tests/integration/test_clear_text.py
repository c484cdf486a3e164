# SPDX-License-Identifier: Apache-2.0
"""Every packet on the link between two hosts of a network lab is recorded: with keys it shows nothing of the guest."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parmig.guests.synthetic.options import parse_options
from parmig.guests.synthetic.synthetic_guest import SyntheticGuest
from parmig.ram.blocks import PAGE_BYTES
from parmig.transport.security.fleet import add_hosts
from parmig.units import MIB
from tests.integration.sides import Command
from tests.labs import needs_lab

pytestmark = needs_lab

if not pytestmark.args[0]:
    from parmig.experiments.netlab import Line, open_lab
    from parmig.experiments.netlab_host import Host

GUEST = "synthetic:memory=8MiB"
ALL_PROTOCOLS = 3  # ETH_P_ALL of linux/if_ether.h
MARK_BYTES = 16
STEP_BYTES = 16 * PAGE_BYTES
ON_THE_WIRE = 65536


@contextmanager
def recorded(host: Host) -> Iterator[bytearray]:
    """All packets of the cards of *host*, one after the other, once it is left."""
    packets = bytearray()
    with host.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    tap.setsockopt(socket.SOL_SOCKET, 33, 64 * MIB)  # SO_RCVBUFFORCE of asm-generic/socket.h
    tap.settimeout(0.2)
    stop = threading.Event()

    def record() -> None:
        while True:
            try:
                packets.extend(tap.recv(ON_THE_WIRE))
            except TimeoutError:
                if stop.is_set():
                    return

    thread = threading.Thread(target=record)
    thread.start()
    try:
        yield packets
    finally:
        stop.set()
        thread.join()
        tap.close()


def marks() -> set[bytes]:
    """Bytes of pages all over the guest, which are random, and the same each time."""
    with SyntheticGuest(parse_options(GUEST.partition(":")[2] + ",rate=0")) as guest:
        (memory,) = guest.memory()
        pages = [os.pread(memory.fd, MARK_BYTES, at + 64) for at in range(0, memory.block.size_bytes, STEP_BYTES)]
    return {mark for mark in pages if len(set(mark)) > MARK_BYTES // 2}


@pytest.mark.parametrize(("transport", "secured"), [("tcp", True), ("zmq", True), ("tcp", False)])
def test_no_byte_of_the_guest_crosses_the_link_in_clear(transport: str, secured: bool, tmp_path: Path) -> None:
    """Without keys nearly every page is found, so bytes in clear would be noticed."""
    with open_lab([Line()]) as lab:
        a, b = lab.hosts
        names = [[f"{host.name}.test", lab.links[0].address(host)] for host in (a, b)]
        directories = [str(path) for path in add_hosts(str(tmp_path / "fleet"), names, 1)]
        options = [["--keys", path] if secured else [] for path in directories]
        bare = [] if secured else ["--insecure"]
        with recorded(b) as packets:
            listen = f"tcp://{lab.links[0].address(b)}:0"
            with b.entered():
                there = Command("receive", "--listen", listen, "--guest", GUEST, "--json", *options[1], *bare)
            with there:
                uri = there.uri()
                with a.entered():
                    chosen = ["--workers", "2", "--transport", transport, "--verify", "--json"]
                    here = Command("send", uri, "--guest", f"{GUEST},rate=0", *chosen, *options[0])
                with here:
                    assert here.end()[0] == 0, here.errors
                assert there.end()[0] == 0, there.errors
    looked_for = marks()
    shown = sum(mark in packets for mark in looked_for)
    assert len(packets) > 8 * MIB
    assert len(looked_for) > 100
    assert shown == 0 if secured else shown > len(looked_for) * 0.9
    assert (b"synthetic" in packets) is not secured
