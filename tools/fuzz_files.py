# SPDX-License-Identifier: Apache-2.0
"""Readers of files, options and a monitor's words, for ``tools/fuzz.py``."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parmig.cli.config_file import read_table
from parmig.engine.records import handover_record
from parmig.engine.records.handover_record import HandOverRecord, RecordState, encode_slot
from parmig.errors import RecordError, SnapshotRefusedError, StateError, StreamError, TraceError, UsageError
from parmig.guests.kvm.options import parse_options as kvm_options
from parmig.guests.options import read_options
from parmig.guests.qemu import layout
from parmig.guests.qemu.options import QemuOptions
from parmig.guests.qemu.ram_list import parse_ram_list
from parmig.guests.synthetic.options import parse_options as synthetic_options
from parmig.inspection import inspect_file
from parmig.ram.traces.trace_file import load_trace
from parmig.snapshot.opened import OpenSnapshot
from parmig.transport.transport import parse_uri
from parmig.units import MIB, parse_cpus, parse_duration_ns, parse_rate, parse_size
from parmig.values import parse_path
from tests.stream.streams import whole_stream
from tools.fuzzing import FindingError, Target
from tools.make_golden_state import FILE, MACHINE, devices, registry_of

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """The name of a file with *content*."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, content)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


# -- files --------------------------------------------------------------------------------------------


def records(content: bytes) -> None:
    """A record of a hand-over. One that is taken was written so."""
    _, _, record = handover_record.decode_file(content)
    if encode_slot(record, 1)[32:] not in {encode_slot(one, 1)[32:] for one in _records()}:
        raise FindingError(f"a record that nobody wrote is taken: {record}")


def _records() -> list[HandOverRecord]:
    return [
        HandOverRecord(session=bytes(range(16)), side="source", state=RecordState.OPEN, kind="qemu", here="x" * 200),
        HandOverRecord(session=bytes(16), side="destination", state=RecordState.PREPARED, guest="é", settled=True),
    ]


def snapshot(content: bytes) -> None:
    """What a restore reads before it touches the guest."""
    with _as_file(content) as name, OpenSnapshot(Path(name)) as opened:
        for block in opened.blocks:
            if block.size_bytes <= 0:
                raise FindingError(f"a block of {block.size_bytes} bytes")


def inspection(content: bytes) -> None:
    """What ``parmig inspect`` reads; damage is described, and raises nothing."""
    with _as_file(content) as name:
        inspect_file(name)


def _snapshots() -> list[bytes]:
    mapped = bytearray()
    for line in (GOLDEN / "mapped-ram.txt").read_text().splitlines():
        offset, content = line.split()
        at = int(offset, 16)
        mapped = mapped.ljust(at, b"\0")  # the file leaves out zeros
        mapped[at:] = bytes.fromhex(content)
    return [bytes(mapped)]


def state(content: bytes) -> None:
    """Device state."""
    registry_of(devices()).load_all(content, machine=MACHINE)


def trace(content: bytes) -> None:
    """A trace."""
    taken = load_trace(io.BytesIO(content), pages_max=MIB)
    for pages in taken.written:
        if len(pages) and not 0 <= pages[0] <= pages[-1] < taken.memory_pages:
            raise FindingError(f"pages {pages[0]} to {pages[-1]} of {taken.memory_pages}")


def config(content: bytes) -> None:
    """A configuration file."""
    known: dict[str, Any] = {"workers": str, "insecure": bool, "path": list[str], "verify": bool | str}
    with _as_file(content) as name:
        read_table(Path(name), "send", known)


# -- text ---------------------------------------------------------------------------------------------


def _each_line(*parsers: Callable[[str], object]) -> Callable[[bytes], None]:
    """Gives each line of an input to every parser. Refused is what all of them refuse."""

    def run(content: bytes) -> None:
        refusal: UsageError | None = None
        taken = 0
        for line in content.decode("utf-8", "surrogateescape").splitlines():
            for parse in parsers:
                try:
                    parse(line)
                    taken += 1
                except UsageError as error:
                    refusal = error
        if refusal is not None and not taken:
            raise refusal

    return run


OPTIONS = b"""memory=32MiB,rate=40MiB/s,blocks=2,seed=7,pattern=sequential,fill=text
memory=64MiB,vcpus=2,program=write,file=/dev/shm/x,console=/dev/null
state=devices,pid=12,timeout=2m
"""
VALUES = b"""tcp://[::1]:4444
zmq+tcp://host.example:0
unix:///run/parmig.sock
10.0.0.1-10.0.0.2@10Gbit/s
1.5GiB
100MB/s
250ms
0-3,8,10-11
"""
RAMBLOCK = b"""              Block Name    PSize              Offset               Used              Total
                   pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f0000000000  rw
                 vga.vram    4 KiB  0x0000000010080000 0x0000000001000000 0x0000000001000000 0x00007f1000000000  rw
"""
MTREE = b"""FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): ram0 KVM
  00000000000c0000-00000000000dffff (prio 1, rom): ram0 @00000000000c0000 KVM
Host virtual address for 0x0 (ram0) is 0x7f0000000000
"""


def qemu_words(content: bytes) -> None:
    """What QEMU's human monitor prints; lines that are not understood are left out."""
    text = content.decode(errors="replace")
    entries = parse_ram_list(text)
    for pieces in layout.parse_mtree(text).values():
        layout.guest_ranges(pieces, 256 * MIB)
    layout.parse_host_address(text)
    if any(entry.page_size_bytes < 0 or entry.used_bytes < 0 for entry in entries):
        raise FindingError("a negative size")


TARGETS = {
    "records": Target(
        records,
        lambda: [encode_slot(one, 1) + encode_slot(_records()[0], 2) for one in _records()],
        (RecordError,),
    ),
    "snapshot": Target(snapshot, _snapshots, (SnapshotRefusedError,)),
    "inspection": Target(
        inspection, lambda: [whole_stream(), (GOLDEN / "sequential.stream").read_bytes(), *_snapshots()], ()
    ),
    "state": Target(state, lambda: [FILE.read_bytes()], (StateError, StreamError)),
    "trace": Target(trace, lambda: [(GOLDEN / "workload.trace").read_bytes()], (TraceError,)),
    "config": Target(
        config, lambda: [b"[send]\nworkers = 4\ninsecure = true\npath = ['a-b', 'c']\n[receive]\n"], (UsageError,)
    ),
    "options": Target(
        _each_line(synthetic_options, kvm_options, lambda text: read_options(text, QemuOptions, "qemu")),
        lambda: [OPTIONS],
        (UsageError,),
    ),
    "values": Target(
        _each_line(parse_uri, parse_path, parse_size, parse_rate, parse_duration_ns, parse_cpus),
        lambda: [VALUES],
        (UsageError,),
    ),
    "qemu_words": Target(qemu_words, lambda: [RAMBLOCK, MTREE], ()),
}
