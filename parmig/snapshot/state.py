# SPDX-License-Identifier: Apache-2.0
"""The device state that a guest writes: kept while the guest is paused, taken apart afterwards.

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
        directory: the directory of the snapshot, so that both need space on the same file system.
    """

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - close() does
        self._digest = xxhash.xxh3_128()
        self.size_bytes = 0

    @property
    def fd(self) -> int:
        """Descriptor of the file; valid until close()."""
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
        """Does nothing: no write waits."""

    def close(self) -> None:
        """Delete the file. Calling it twice is fine."""
        self._file.close()


@dataclass
class GuestState:
    """A guest's state, taken apart; a context manager.

    Attributes:
        fd: of the file that holds it; used, not owned.
        devices: the bytes of the file that hold the devices, without the mark of the end.
        is_stream: whether it is of QEMU's format; else *devices* is all of it, whatever that is.
        description: the JSON after the stream as a structure, or None.
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
        """Each of *blocks*, its image, and which pages of the image exist."""
        if self.shared is not None:
            yield from zip(self.blocks, self.images.mappings, self.shared.bits, strict=True)

    def close(self) -> None:
        """Close the images. Calling it twice is fine."""
        self.images.close()
        if self.shared is not None:
            self.shared.close()
            self.shared = None

    def __enter__(self) -> GuestState:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def take_apart(state: StateFile, machine: str, moved_blocks: Collection[str]) -> GuestState:
    """The parts of *state*. The caller closes the result.

    Args:
        machine: the guest's machine type; a stream of another one is taken as bytes.
        moved_blocks: names of the blocks whose pages parmig moves itself.

    Raises:
        SnapshotError: it is damaged, or holds what a snapshot cannot.
    """
    parts = GuestState(state.fd, range(state.size_bytes))
    try:
        if os.pread(state.fd, 4, 0) == MIGRATION_VM_FILE_MAGIC.to_bytes(4, "big"):
            walk = StreamWalk(MigrationDataFile(FileStream(state.fd, "device state"), "device state"))
            head = walk.head()
            if head.configuration.machine == machine:
                _take_blocks(parts, walk, head, moved_blocks)
                end, parts.description, _ = find_end(state.fd, state.size_bytes)
                parts.is_stream, parts.devices = True, range(walk.devices_offset_bytes, end)
    except StreamError as error:
        parts.close()
        raise SnapshotError(f"the guest's device state cannot be put into a snapshot: {error}") from error
    except BaseException:
        parts.close()
        raise
    return parts


def _take_blocks(parts: GuestState, walk: StreamWalk, head: StreamHead, moved_blocks: Collection[str]) -> None:
    parts.blocks = [
        BlockEntry(block.name, block.size_bytes)
        for block in head.blocks
        if block.size_bytes and block.name not in moved_blocks
    ]
    parts.images = BlockImages(parts.blocks)
    blocks = [part.block for part in parts.images.memory]
    parts.shared = SharedArea(-1, workers=1, blocks=blocks, regions=1)
    placer = StreamPlacer(parts.images.mappings, parts.shared)
    for run in walk.pages():
        if run.block in moved_blocks:
            raise StreamDataError(f"the monitor wrote pages of block {run.block!r}, which parmig moves itself")
        placer.place(run)
