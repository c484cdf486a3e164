# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from parmig.guests.qemu.description import cpu_model, devices, disks, memory_slots, virtual_cpus

QTREE = """bus: main-system-bus
  type System
  dev: ps2-mouse, id ""
    gpio-out "" 1
  dev: nvme-subsys, id "mine"
  dev: i440FX-pcihost, id ""
    pci-hole64-size = 2147483648 (2 GiB)
    bus: pci.0
      type PCI
      dev: virtio-scsi-pci, id "sc"
        disable-legacy = "off"
        addr = 06.0
        class Class 00ff, addr 00:06.0, pci id 1af4:1002 (sub 1af4:0005)
        bus: virtio-bus
          type virtio-pci-bus
          dev: virtio-scsi-device, id ""
            num_queues = 4 (0x4)
            bus: sc.0
              type SCSI
              dev: scsi-hd, id "sd"
                scsi-id = 0 (0x0)
                lun = 3 (0x3)
      dev: qemu-xhci, id ""
        addr = 05.0
        bus: usb.0
          dev: usb-tablet, id ""
            port = ""
          dev: usb-kbd, id ""
            port = "2"
      dev: PIIX3, id ""
        addr = 01.0
        bus: isa.0
          dev: isa-serial, id ""
            index = 0 (0x0)
            iobase = 1016 (0x3f8)
"""


def test_devices_have_their_id_and_their_place() -> None:
    assert devices(QTREE) == [
        "nvme-subsys 'mine' on main-system-bus",
        "virtio-scsi-pci 'sc' on pci.0 addr 06.0",
        "virtio-scsi-device on virtio-bus",
        "scsi-hd 'sd' on sc.0 scsi-id 0 lun 3",
        "qemu-xhci on pci.0 addr 05.0",
        "usb-tablet on usb.0",
        "usb-kbd on usb.0 port 2",
        "PIIX3 on pci.0 addr 01.0",
        "isa-serial on isa.0 iobase 1016",
    ]
    assert devices("") == []


def drive(filename: str = "/images/a.qcow2", **fields: Any) -> dict[str, Any]:
    image = {"filename": filename, "virtual-size": 64 << 20, "format": "qcow2"}
    filtered = {"drv": "mirror_top", "ro": False, "image": image}  # by a job that copies the disk meanwhile
    return {"device": "", "inserted": filtered} | fields


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (drive(qdev="/machine/peripheral/d0/virtio-backend"), "d0: qcow2 64 MiB a.qcow2"),
        (drive(qdev="sd"), "sd: qcow2 64 MiB a.qcow2"),
        (drive(qdev="/machine/unattached/device[23]", device="ide0"), "ide0: qcow2 64 MiB a.qcow2"),
        (drive(qdev="/machine/peripheral-anon/device[1]"), "a drive without an id: qcow2 64 MiB a.qcow2"),
        (drive("/dev/dm-3", qdev="d0"), "d0: qcow2 64 MiB"),
        (drive("/dev/shm/x", qdev="d0"), "d0: qcow2 64 MiB x"),
        (drive("nbd://host/disk", qdev="d0"), "d0: qcow2 64 MiB disk"),
        (drive('json:{"driver":"qcow2","file":{"driver":"file","filename":"/i/b"}}', qdev="d0"), "d0: qcow2 64 MiB b"),
        (drive('json:{"driver":"null-co"}', qdev="d0"), "d0: qcow2 64 MiB"),
        ({"device": "ide1-cd0", "qdev": "/machine/unattached/device[20]"}, "ide1-cd0: empty"),
    ],
)
def test_a_disk_is_known_by_its_device_and_its_image(given: dict[str, Any], words: str) -> None:
    assert disks([given]) == [words]


def test_a_disk_that_cannot_be_written_says_so() -> None:
    given = drive(qdev="d0")
    given["inserted"]["ro"] = True
    assert disks([given]) == ["d0: qcow2 64 MiB a.qcow2 read-only"]


def test_a_drive_that_no_device_has_is_none_of_the_guest() -> None:
    assert disks([drive()]) == []


@pytest.mark.parametrize(
    ("count", "smp", "words"),
    [
        (1, {}, "1"),
        (1, {"cpus": 1, "maxcpus": 1, "cores": 1, "sockets": 1}, "1"),
        (4, {"cpus": 4, "maxcpus": 4, "cores": 2, "sockets": 2, "threads": 1}, "4 (2 sockets, 2 cores)"),
        (3, {"cpus": 2, "maxcpus": 6, "cores": 6, "modules": 1}, "3 of at most 6 (6 cores)"),
    ],
)
def test_virtual_cpus_are_counted_and_arranged(count: int, smp: dict[str, int], words: str) -> None:
    assert virtual_cpus(count, smp) == words


def test_memory_slots_are_described_where_there_are_any() -> None:
    assert memory_slots({}) == memory_slots({"size": 1 << 28}) == "none"
    assert memory_slots({"size": 1 << 28, "slots": 4, "max-size": 1 << 30}) == "4 slots, up to 1 GiB"


@pytest.mark.parametrize(
    ("kind", "model"),
    [("Haswell-v4-x86_64-cpu", "Haswell-v4"), ("qemu64-x86_64-cpu", "qemu64"), ("cortex-a57-arm-cpu", "cortex-a57")],
)
def test_a_cpu_is_called_as_on_the_command_line(kind: str, model: str) -> None:
    assert cpu_model(kind) == model
