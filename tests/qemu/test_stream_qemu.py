# SPDX-License-Identifier: Apache-2.0
"""parmig.stream and a real QEMU: it reads what QEMU writes, and QEMU loads what it writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parmig.stream import TARGET_PAGE_BYTES, MigrationDataFile
from parmig.stream.configuration import Configuration
from parmig.stream.mapped_ram import HEADER_BYTES, layout
from parmig.stream.ram_blocks import BlockEntry, read_setup, write_block_list
from parmig.stream.ram_encode import Pages, encode_page_words, page_words_bytes, part_section
from parmig.stream.ram_words import EncodedPage, Encoding, PageRun, RamWordReader
from parmig.stream.section_writer import SectionWriter
from parmig.stream.sections import EndOfStream, SectionHead, SectionKind, SectionReader
from parmig.stream.vmdescription import VmDescription, decode, device_bytes, find, parse
from parmig.transport.file import FileStream
from tests.qemu.machines import MIB, QemuMachine, wait_until

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("qemu")]

MEMORY_BYTES = 32 * MIB
FIRST_PAGE, PAST_PAGE = 0x10, 0x90
"""Pages that the guest writes, for ever, a byte each."""

# cli; start: mov ax, 0x1000; next: mov es, ax; inc byte [es:0]; add ax, 0x100; cmp ax, 0x9000; jne next;
# mov eax, cr0; xor eax, 0x10000; mov cr0, eax; jmp start.
# Changing CR0.WP empties TCG's TLB. QEMU before 8.2 does not see a page written again that never left it.
PROGRAM = bytes.fromhex("fa b80010 8ec0 26fe060000 050001 3d0090 75f1 0f20c0 663500000100 0f22c0 ebe0")
BOOT_SECTOR = PROGRAM.ljust(510, b"\0") + b"\x55\xaa"


@contextmanager
def guest(*, incoming: bool = False) -> Iterator[QemuMachine]:
    """A small guest that has not begun; told to continue, it writes its pages."""
    machine = QemuMachine(
        memory_bytes=MEMORY_BYTES, incoming=incoming, extra=("-drive", "file={dir}/boot,format=raw,if=ide,snapshot=on")
    )
    (machine.directory / "boot").write_bytes(BOOT_SECTOR)
    with machine:
        yield machine


def memory(machine: QemuMachine) -> Pages:
    """A copy of all guest memory."""
    return np.fromfile(machine.directory / "ram", np.uint8).reshape(-1, TARGET_PAGE_BYTES)


def run(machine: QemuMachine) -> None:
    """Let the guest run until it writes."""
    before = memory(machine)[FIRST_PAGE:PAST_PAGE, 0]
    machine.ask("cont")
    wait_until(lambda: (memory(machine)[FIRST_PAGE:PAST_PAGE, 0] != before).all(), "the guest writing its memory")


def capable(machine: QemuMachine, names: list[str]) -> None:
    """Turn migration capabilities on; skip where this QEMU has them not."""
    known = {one["capability"] for one in machine.ask("query-migrate-capabilities")}
    if missing := set(names) - known:
        pytest.skip(f"this QEMU has no {', '.join(missing)}")
    machine.ask("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in names])


def migrate(machine: QemuMachine, command: str, uri: str) -> None:
    """Migrate in or out, to the end."""
    machine.ask(command, uri=uri)

    def done() -> bool:
        status = machine.ask("query-migrate")
        assert status.get("status") != "failed", status
        return bool(status.get("status") == "completed")

    wait_until(done, f"{command} {uri}")


@dataclass
class Contents:
    """All that is in a stream.

    Attributes:
        memory: by block, as its pages make it, beginning with zeros.
        devices: head, bytes and values of each FULL section.
        kinds: how often each kind of page or of encoding came.
    """

    configuration: Configuration
    description: VmDescription
    json: bytes
    blocks: list[BlockEntry] = field(default_factory=list)
    memory: dict[str, Pages] = field(default_factory=dict)
    devices: list[tuple[SectionHead, bytes, dict[str, Any]]] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)


def read(path: Path) -> Contents:
    """Everything in the file, to its last byte."""
    content = path.read_bytes()[-(1 << 20) :]
    where = find(content)
    assert where is not None
    description = parse(content[where])
    devices = {(one.name, one.instance_id): one for one in description.devices}
    fd = os.open(path, os.O_RDONLY)
    try:
        data = MigrationDataFile(FileStream(fd, "qemu"), "qemu")
        reader = SectionReader(data)
        reader.read_header()
        configuration = reader.next()
        assert isinstance(configuration, Configuration)
        found = Contents(configuration, description, content[where])
        words = RamWordReader(data, [])
        while not isinstance(item := reader.next(), EndOfStream):
            if not isinstance(item, SectionHead):
                continue
            if item.idstr == "ram":
                words = begin_ram(data, found) if item.kind is SectionKind.START else words
                place(words, found)
            else:
                device = devices.pop((item.idstr, item.instance_id))
                state = data.get_buffer(device_bytes(device))
                found.devices.append((item, state, decode(device, state)))
            reader.footer(item)
        assert reader.vmdescription() == content[where]
        assert data.at_end()
        assert devices == {}
        return found
    finally:
        os.close(fd)


def begin_ram(data: MigrationDataFile, found: Contents) -> RamWordReader:
    capabilities = found.configuration.capabilities
    found.blocks = read_setup(
        data, ignore_shared="x-ignore-shared" in capabilities, mapped_ram="mapped-ram" in capabilities
    )
    found.memory = {one.name: np.zeros((one.pages, TARGET_PAGE_BYTES), np.uint8) for one in found.blocks}
    return RamWordReader(data, found.blocks)


def place(words: RamWordReader, found: Contents) -> None:
    for run in words.read_section():
        block = found.memory[run.block]
        if isinstance(run, EncodedPage):
            block[run.page] = np.frombuffer(run.decode(block[run.page].tobytes()), np.uint8)
            found.kinds[run.kind.name] = found.kinds.get(run.kind.name, 0) + 1
        else:
            block[run.index] = run.pages if isinstance(run, PageRun) else 0
            kind = type(run).__name__
            found.kinds[kind] = found.kinds.get(kind, 0) + len(run.index)


@pytest.mark.parametrize(
    "capabilities", [[], ["x-ignore-shared"], ["compress"]], ids=lambda names: "+".join(names) or "plain"
)
def test_what_qemu_writes_is_read_whole(capabilities: list[str]) -> None:
    with guest() as machine:
        capable(machine, capabilities)
        run(machine)
        machine.ask("stop")
        migrate(machine, "migrate", f"exec:cat > {machine.directory}/stream")
        expected = memory(machine)
        found = read(machine.directory / "stream")
    ignored = capabilities == ["x-ignore-shared"]
    assert found.configuration.machine.startswith("pc-i440fx-")
    assert found.configuration.capabilities == (("x-ignore-shared",) if ignored else ())
    assert {one.name for one in found.blocks} >= {"ram0", "pc.bios"}
    assert all((one.gpa is not None) == ignored for one in found.blocks)
    assert (found.memory["ram0"] == (0 if ignored else expected)).all()
    assert found.memory["pc.bios"].any()
    assert (found.kinds.get("COMPRESS", 0) > 0) == (capabilities == ["compress"])
    values = {head.idstr: one for head, _, one in found.devices}
    assert values["globalstate"]["runstate"].startswith(b"paused\0")
    assert values["cpu"]["env.segs"][0]["selector"] >> 8 in range(FIRST_PAGE, PAST_PAGE + 1)  # es


def test_differences_that_qemu_encodes_make_the_pages_that_the_guest_has() -> None:
    with guest() as machine:
        capable(machine, ["xbzrle"])
        run(machine)
        # QEMU sends 200 KiB, then waits for the rest of 100 ms. So the second pass over the 512 KiB that the guest
        # writes lasts long enough for all of them to be written again: the third pass finds them in its cache.
        machine.ask("migrate-set-parameters", **{"downtime-limit": 1, "max-bandwidth": 2 * MIB})
        machine.ask("migrate", uri=f"exec:cat > {machine.directory}/stream")

        def encoded_or_done() -> bool:
            status = machine.ask("query-migrate")
            return status["status"] == "completed" or status.get("xbzrle-cache", {"pages": 0})["pages"] > 0

        wait_until(encoded_or_done, "encoded pages")
        machine.ask("migrate-set-parameters", **{"downtime-limit": 2000, "max-bandwidth": 1024 * MIB})
        wait_until(lambda: machine.ask("query-migrate")["status"] == "completed", "the end of the migration")
        found = read(machine.directory / "stream")
        assert found.kinds.get(Encoding.XBZRLE.name, 0) > 10
        assert (found.memory["ram0"] == memory(machine)).all()


def test_qemu_lays_out_a_mapped_file_as_we_do() -> None:
    with guest() as machine:
        capable(machine, ["mapped-ram"])
        run(machine)
        machine.ask("stop")
        migrate(machine, "migrate", f"file:{machine.directory}/stream")
        expected = memory(machine)
        file = np.memmap(machine.directory / "stream", np.uint8, "r")
        found = read(machine.directory / "stream")
        for one in found.blocks:
            assert one.mapped is not None
            assert one.mapped == layout(one.mapped.bitmap_offset_bytes - HEADER_BYTES, one.size_bytes)
        ram = found.blocks[0].mapped
        assert (found.blocks[0].name, found.kinds) == ("ram0", {})
        assert ram is not None
        at = ram.bitmap_offset_bytes
        stored = np.unpackbits(file[at : at + len(expected) // 8], bitorder="little").astype(bool)
        assert (stored == expected.any(axis=1)).all()
        at = ram.pages_offset_bytes
        assert (file[at : at + MEMORY_BYTES].reshape(expected.shape)[stored] == expected[stored]).all()
        del file


def write(path: Path, parts: Contents) -> None:
    """A stream of the same parts, by parmig's own writers."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        data = MigrationDataFile(FileStream(fd, "parmig"), "parmig")
        writer = SectionWriter(data)
        writer.header()
        writer.configuration(parts.configuration.machine, parts.configuration.capabilities)
        writer.start(2, "ram", 0, 4)
        write_block_list(data, parts.blocks)
        data.put_be64(0x10)
        writer.footer(2)
        for name, pages in parts.memory.items():
            for first in range(0, len(pages), 100):
                some = pages[first : first + 100]
                index = np.arange(first, first + len(some))
                words = encode_page_words(bytearray(page_words_bytes(name, len(some))), name, index, some)
                for piece in part_section(2, [words]):
                    data.put_buffer(piece)
        writer.end(2)
        data.put_be64(0x10)
        writer.footer(2)
        for head, state, _ in parts.devices:
            writer.full(head.section_id, head.idstr, head.instance_id, head.version_id)
            data.put_buffer(state)
            writer.footer(head.section_id)
        writer.eof()
        writer.vmdescription(parts.json)
        data.flush_data()
    finally:
        os.close(fd)


def test_qemu_loads_what_we_write_and_the_guest_goes_on() -> None:
    with guest() as source:
        run(source)
        source.ask("stop")
        migrate(source, "migrate", f"exec:cat > {source.directory}/stream")
        parts = read(source.directory / "stream")
    with guest(incoming=True) as destination:
        write(destination.directory / "ours", parts)
        migrate(destination, "migrate-incoming", f"exec:cat {destination.directory}/ours")
        assert (memory(destination) == parts.memory["ram0"]).all()
        assert destination.ask("query-status")["status"] == "paused"
        run(destination)
