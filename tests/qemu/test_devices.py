# SPDX-License-Identifier: Apache-2.0
"""What parmig reads of QEMU's devices, and which of them it refuses to track."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parmig.errors import GuestError, GuestRefusedError
from parmig.guests.qemu.device_list import Device, changes, inventory, untracked
from parmig.guests.qemu.options import open_qemu
from parmig.guests.qemu.qemu_guest import QemuGuest
from parmig.guests.qemu.qmp import Qmp
from parmig.guests.qemu.settle import choose_way
from tests.integration.sides import LISTEN, Command
from tests.qemu.carry import Buffer
from tests.qemu.machines import MIB, QemuMachine, wait_until

QTREE = """bus: main-system-bus
  type System
  dev: hpet, id ""
    timers = 3 (0x3)
  dev: i440FX-pcihost, id ""
    bus: pci.0
      type PCI
      dev: virtio-net-pci, id "net0"
        bus: virtio-bus
          dev: virtio-net-device, id ""
      dev: vhost-user-fs-pci, id "share"
        tag = "a, id \\"b\\""
"""
RAMBLOCKS = """              Block Name    PSize              Offset               Used              Total
                    ram0    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000
   0000:00:02.0/vga.vram    4 KiB  0x0000000010080000 0x0000000001000000 0x0000000001000000
"""


def test_devices_and_blocks_are_read_in_their_order() -> None:
    found = inventory(QTREE, RAMBLOCKS)
    assert [device.type for device in found.devices] == [
        *("hpet", "i440FX-pcihost", "virtio-net-pci", "virtio-net-device", "vhost-user-fs-pci")
    ]
    assert found.devices[2] == Device("virtio-net-pci", "net0")
    assert found.blocks == ("ram0 of 268435456 bytes", "0000:00:02.0/vga.vram of 16777216 bytes")


def test_what_came_and_what_went_is_named() -> None:
    before = inventory(QTREE, RAMBLOCKS)
    assert changes(before, before) == ""
    added = QTREE + '      dev: pc-dimm, id "dimm0"\n'
    assert changes(before, inventory(added, RAMBLOCKS)) == "device pc-dimm 'dimm0' was added"
    gone = QTREE.replace('dev: virtio-net-pci, id "net0"', 'dev: hpet, id ""')
    assert changes(before, inventory(gone, RAMBLOCKS)) == (
        "device hpet was added; device virtio-net-pci 'net0' was removed"
    )
    more = RAMBLOCKS + "   dimm0    4 KiB  0x0000000020080000 0x0000000001000000 0x0000000001000000\n"
    assert changes(before, inventory(QTREE, more)) == "RAM block dimm0 of 16777216 bytes was added"
    smaller = RAMBLOCKS.replace("0x0000000001000000 ", "0x0000000000800000 ")
    assert changes(before, inventory(QTREE, smaller)) == (
        "RAM block 0000:00:02.0/vga.vram of 8388608 bytes was added; "
        "RAM block 0000:00:02.0/vga.vram of 16777216 bytes was removed"
    )


NETWORK = r"""net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56
 \ hostnet0: index=0,type=tap,ifname=tap0,script=no,vhost=on
hub 0
 \ hub0port1: user.0: index=0,type=user,net=10.0.2.0
"""


def test_a_guest_of_qemus_own_devices_is_tracked() -> None:
    devices = [Device(kind, "") for kind in ("virtio-blk-pci", "virtio-net-pci", "nvme", "vhost-vsock-pci", "VGA")]
    objects = [{"name": "ram0", "type": "child<memory-backend-file>"}]
    nodes = [{"drv": "raw", "node-name": "disk"}, {"drv": "file"}]
    assert untracked(devices, NETWORK, objects, nodes) == []


@pytest.mark.parametrize(
    "kind",
    [
        *("vfio-pci", "vfio-ap", "vfio-user-pci", "vhost-user-blk-pci", "vhost-user-fs-pci", "vhost-scsi-pci"),
        *("vhost-vdpa-device-pci", "x-pci-proxy-dev", "ivshmem-plain", "pvrdma"),
    ],
)
def test_a_device_that_another_process_or_the_hardware_serves_is_named(kind: str) -> None:
    assert [str(one) for one in untracked([Device("VGA", ""), Device(kind, "x")], "", [], [])] == [f"{kind} 'x'"]


def test_network_clients_objects_and_disks_are_looked_at_too() -> None:
    network = NETWORK.replace("type=tap", "type=vhost-user") + r" \ v: index=0,type=vhost-vdpa,vhostdev=x" + "\n"
    objects = [{"name": "crypto0", "type": "child<cryptodev-vhost-user>"}]
    nodes = [{"drv": "nvme", "node-name": "fast"}]
    assert [str(one) for one in untracked([], network, objects, nodes)] == [
        *("vhost-user 'hostnet0'", "vhost-vdpa 'v'", "cryptodev-vhost-user 'crypto0'", "nvme 'fast'")
    ]


# -- with a real QEMU ---------------------------------------------------------------------------------

SHARED = (
    *("-object", "memory-backend-file,id=shm,size=1M,share=on,mem-path={dir}/shm"),
    *("-device", "ivshmem-plain,memdev=shm,master=on,id=window"),
)
SLOTS = [
    *("-machine", "pc,memory-backend=ram0", "-m", "256M,slots=2,maxmem=1G"),
    *("-object", f"memory-backend-file,id=ram0,size={256 * MIB},mem-path={{dir}}/ram,share=on"),
    *("-object", "memory-backend-file,id=more,size=128M,mem-path={dir}/more,share=on"),
]


@pytest.mark.qemu
def test_a_device_that_others_write_through_is_refused_by_name_and_auto_tells_what_remains(initrd: Path) -> None:
    with QemuMachine(initrd, extra=SHARED) as machine:
        machine.wait_for_serial("TICK 1 ")  # its window is in the guest's memory by now
        with open_qemu(machine.socket, incoming=False) as guest:
            with pytest.raises(GuestRefusedError, match=r"ivshmem-plain 'window'.*--tracker digest"):
                guest.start_dirty_log("pagemap")
            assert machine.tracked_mappings() == 0
            log = guest.start_dirty_log("auto")
            assert (log.kind, log.settle) == ("digest", "")
            assert "ivshmem-plain 'window'" in log.reason


def pause_and_save(guest: QemuGuest) -> None:
    guest.pause(Buffer())
    guest.save_state(Buffer())


@pytest.mark.qemu
@pytest.mark.parametrize("state", ["devices", "migrate"])
def test_a_device_that_came_since_the_dirty_log_began_ends_the_pause_by_name(
    bare_guest: QemuMachine, state: str
) -> None:
    with open_qemu(f"{bare_guest.socket},state={state}", incoming=False) as guest:
        guest.start_dirty_log("digest")
        bare_guest.ask("device_add", driver="virtio-rng-pci", id="rng0")
        with pytest.raises(GuestError, match=r"QEMU changed during the migration.*virtio-rng-pci 'rng0'"):
            pause_and_save(guest)
        guest.resume_source()


def plug_memory(machine: QemuMachine) -> None:
    machine.ask("device_add", driver="pc-dimm", id="dimm0", memdev="more")


def plug_device(machine: QemuMachine) -> None:
    machine.ask("device_add", driver="virtio-rng-pci", id="rng0")


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("plug", "words"),
    [(plug_memory, ("RAM block more of",)), (plug_device, ("virtio-rng-pci 'rng0'",))],
)
def test_what_is_plugged_during_a_migration_ends_it_and_the_source_runs_on(
    initrd: Path, plug: Callable[[QemuMachine], None], words: tuple[str, ...]
) -> None:
    with (
        QemuMachine(initrd, memory=SLOTS, rate=10) as source,
        QemuMachine(initrd, memory=SLOTS, incoming=True) as destination,
    ):
        source.wait_for_serial("TICK 2 ")
        settings = source.settings()
        receive = Command("receive", "--listen", LISTEN, "--guest", f"qemu:{destination.socket}", "--json")
        with receive as there:
            sending = Command(
                *("send", there.uri(), "--guest", f"qemu:{source.socket}", "--json"), "--max-bandwidth", "30MiB/s"
            )
            with sending as here:
                wait_until(lambda: source.tracked_mappings() > 0, "the dirty log to begin")
                plug(source)
                code, report = here.end()
            there.end()
        assert (code, report["status"]) == (1, "failed")
        for part in words:
            assert part in report["error"]["message"]
        source.wait_for_ticks(2)
        assert source.settings() == settings
        assert source.tracked_mappings() == 0


@pytest.mark.qemu
@pytest.mark.parametrize("way", ["transaction", "stop"])
def test_settling_leaves_the_guest_running_and_nothing_behind(linux_guest: QemuMachine, way: str) -> None:
    nodes = linux_guest.ask("query-named-block-nodes", flat=True)
    with open_qemu(f"{linux_guest.socket},settle={way}", incoming=False) as guest:
        assert guest.start_dirty_log("pagemap").settle == way
        for _ in range(3):
            guest.settle()
            assert guest.is_running()
    linux_guest.wait_for_ticks(1)
    assert linux_guest.ask("query-named-block-nodes", flat=True) == nodes


@pytest.mark.qemu
def test_a_qemu_is_tried_before_its_transaction_is_relied_on(linux_guest: QemuMachine) -> None:
    with contextlib.closing(Qmp(linux_guest.socket)) as qmp:
        assert choose_way(qmp) == "transaction"
        execute = qmp.execute

        def forgetful(command: str, /, **arguments: Any) -> Any:
            return {} if command == "transaction" else execute(command, **arguments)

        qmp.execute = forgetful  # type: ignore[method-assign]
        assert choose_way(qmp) == "stop"
        assert linux_guest.ask("query-block") == qmp.execute("query-block")
