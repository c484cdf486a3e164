# SPDX-License-Identifier: Apache-2.0
"""What a guest wrote as its device state: kept while it is paused, taken apart afterwards.

QEMU writes a stream of its own format, with the pages of its small blocks in it; guests with a StateRegistry write
one without RAM; any other guest's bytes are taken as they are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from parmig.errors import SnapshotError, StreamDataError, StreamError
from parmig.ram.bits import Bits
from parmig.ram.place_stream import StreamPlacer
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.shared import SharedArea
from parmig.snapshot.images import BlockImages
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.device_part import Description, find_end
from parmig.stream.flags import MIGRATION_VM_FILE_MAGIC
from parmig.stream.ram_blocks import BlockEntry
from parmig.stream.stream_walk import StreamHead, StreamWalk
from parmig.transport.file import FileStream


class StateFile:
    """Keeps device state in a file without a name: the sink of a guest that is being saved.

    Args:
        directory: where the snapshot will be, so that it is the same file system that may be full.
    """

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - close() does
        self._digest = xxhash.xxh3_128()
        self.size_bytes = 0

    @property
    def fd(self) -> int:
        """Of the file; valid until close()."""
        return self._file.fileno()

    @property
    def digest(self) -> str:
        """xxh3-128 of everything written so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep *data*, copying it.

        Raises:
            SnapshotError: the file system is full or failed.
        """
        self._digest.update(data)
        FileStream(self.fd, "device state", offset_bytes=self.size_bytes).write([data])
        self.size_bytes += memoryview(data).nbytes

    def abort(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Drop it. Calling it twice is fine."""
        self._file.close()


@dataclass
class GuestState:
    """A guest's state, taken apart; a context manager.

    Attributes:
        fd: of the file that holds it; used, not owned.
        devices: the bytes of the file that hold the devices, without the mark of the end.
        is_stream: whether it is of QEMU's format; else *devices* is all of it, whatever that is.
        description: the JSON behind the stream as a structure, or None.
        blocks: those that travel in the state; their pages are in *images*.
        shared: its bits say which pages of *images* exist.
    """

    fd: int
    devices: range
    is_stream: bool = False
    description: Description | None = None
    blocks: list[BlockEntry] = field(default_factory=list)
    images: BlockImages = field(default_factory=lambda: BlockImages(()))
    shared: SharedArea | None = None

    def small_blocks(self) -> Iterator[tuple[BlockEntry, BlockMapping, Bits]]:
        """Each of *blocks* with its image, and with which pages of that exist."""
        if self.shared is not None:
            yield from zip(self.blocks, self.images.mappings, self.shared.bits, strict=True)

    def close(self) -> None:
        """Give back the images. Calling it twice is fine."""
        self.images.close()
        if self.shared is not None:
            self.shared.close()
            self.shared = None

    def __enter__(self) -> GuestState:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take_apart(state: StateFile, machine: str, not_in_it: Collection[str]) -> GuestState:
    """What *state* holds. The caller closes it.

    Args:
        machine: the guest's machine type; a stream of another one is taken as bytes.
        not_in_it: names of the blocks that parmig moves itself.

    Raises:
        SnapshotError: it is damaged, or holds what a snapshot cannot.
    """
    found = GuestState(state.fd, range(state.size_bytes))
    try:
        if os.pread(state.fd, 4, 0) == MIGRATION_VM_FILE_MAGIC.to_bytes(4, "big"):
            walk = StreamWalk(MigrationDataFile(FileStream(state.fd, "device state"), "device state"))
            head = walk.head()
            if head.configuration.machine == machine:
                _take_blocks(found, walk, head, not_in_it)
                end, found.description, _ = find_end(state.fd, state.size_bytes)
                found.is_stream, found.devices = True, range(walk.devices_offset_bytes, end)
    except StreamError as error:
        found.close()
        raise SnapshotError(f"the guest's device state cannot be put into a snapshot: {error}") from error
    except BaseException:
        found.close()
        raise
    return found


def _take_blocks(found: GuestState, walk: StreamWalk, head: StreamHead, not_in_it: Collection[str]) -> None:
    found.blocks = [
        BlockEntry(one.name, one.size_bytes) for one in head.blocks if one.size_bytes and one.name not in not_in_it
    ]
    found.images = BlockImages(found.blocks)
    blocks = [one.block for one in found.images.memory]
    found.shared = SharedArea(-1, workers=1, blocks=blocks, regions=1)
    placer = StreamPlacer(found.images.mappings, found.shared)
    for run in walk.pages():
        if run.block in not_in_it:
            raise StreamDataError(f"the monitor wrote pages of block {run.block!r}, which is shared memory")
        placer.place(run)
