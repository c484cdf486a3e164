# SPDX-License-Identifier: Apache-2.0
"""Packets that arrive during a migration are stored by the network card: QEMU's own, or vhost-net in the kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.sides import LISTEN, Command
from tests.qemu.disks import VIRTIO_MODULES, build_disk_initrd, missing_module
from tests.qemu.machines import BOOT_LIMIT_S, QemuMachine, wait_until

pytestmark = pytest.mark.qemu

VHOST = "/dev/vhost-net"
TAP = "/dev/net/tun"
MODULES = (*VIRTIO_MODULES, "net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net")

INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t devtmpfs none /dev; mkdir /sys; mount -t sysfs none /sys
for name in {" ".join(Path(name).name for name in MODULES)}; do insmod /$name.ko; done
ip link set eth0 up
while true; do echo RECEIVED $(cat /sys/class/net/eth0/statistics/rx_packets).; usleep 200000; done
"""

SEND = """
import os, socket, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
while True:
    sender.sendto(os.urandom(1400), ("10.9.9.255", 9))
    time.sleep(0.002)
"""


@pytest.fixture(scope="session")
def network_initrd(qemu: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Linux that says all the time how many packets it has received."""
    for path in (TAP, "/usr/bin/unshare", "/usr/bin/nsenter"):
        if not os.path.exists(path):
            pytest.skip(f"no {path}")
    if reason := missing_module(MODULES[-1]):
        pytest.skip(reason)
    return build_disk_initrd(tmp_path_factory.mktemp("network"), INIT, modules=MODULES)


class NetworkMachine(QemuMachine):
    """A QEMU in a network namespace of its own, with a network card behind the tap device ``tap0``."""

    def __init__(self, initrd: Path, *, vhost: bool, incoming: bool = False) -> None:
        card = f"tap,id=net0,ifname=tap0,script=no,downscript=no,vhost={'on' if vhost else 'off'}"
        card_options = ("-netdev", card, "-device", "virtio-net-pci,netdev=net0,romfile=")
        super().__init__(initrd, incoming=incoming, extra=card_options)
        self.command = ["unshare", "--net", "--", *self.command]  # it becomes QEMU, under the same number

    @property
    def enter_network(self) -> list[str]:
        """What a command begins with that runs in the namespace."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--"]

    @contextmanager
    def packets(self) -> Iterator[None]:
        """Send packets to the guest all the time."""
        for arguments in ("address add 10.9.9.1/24 dev tap0", "link set tap0 up"):
            subprocess.run([*self.enter_network, "ip", *arguments.split()], check=True)
        sender = subprocess.Popen([*self.enter_network, sys.executable, "-c", SEND])
        try:
            yield
        finally:
            sender.kill()
            sender.wait()

    def received(self) -> int:
        """How many packets the guest has received."""
        return max(map(int, re.findall(r"RECEIVED (\d+)\.", self.serial())), default=0)

    def wait_for_packets(self, more: int) -> None:
        """Wait until the guest has received so many more."""
        wanted = self.received() + more
        wait_until(lambda: self.received() >= wanted, f"{more} more packets", BOOT_LIMIT_S)


@pytest.mark.parametrize(
    "vhost",
    [
        pytest.param(False, id="virtio-net of QEMU"),
        pytest.param(
            True,
            id="vhost-net",
            marks=pytest.mark.skipif(not os.path.exists(VHOST), reason=f"no {VHOST}: the kernel lacks vhost-net"),
        ),
    ],
)
def test_packets_that_arrive_during_a_migration_are_in_the_memory_that_arrives(
    network_initrd: Path, vhost: bool
) -> None:
    with (
        NetworkMachine(network_initrd, vhost=vhost) as source,
        NetworkMachine(network_initrd, vhost=vhost, incoming=True) as destination,
        source.packets(),
    ):
        source.wait_for_packets(100)
        assert (VHOST in source.fds().values()) is vhost
        receive = Command("receive", "--listen", LISTEN, "--guest", f"qemu:{destination.socket}", "--json")
        with receive as there:
            sending = Command(
                *("send", there.uri(), "--guest", f"qemu:{source.socket}", "--json", "--verify"),
                *("--tracker", "pagemap", "--workers", "2", "--max-bandwidth", "10MiB/s"),
            )
            with sending as here:
                wait_until(lambda: source.tracked_mappings() > 0, "the dirty log to begin")
                source.wait_for_packets(100)
                code, report = here.end()
                assert (code, report["status"], report["verified"]) == (0, "completed", True), here.errors
            there.end()
        with destination.packets():
            destination.wait_for_packets(100)
