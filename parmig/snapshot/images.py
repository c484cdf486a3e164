# SPDX-License-Identifier: Apache-2.0
"""Images: files for blocks that the guest has not in ``memory()`` (video memory, ROMs) and that travel in its state."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from parmig.errors import StreamTooLongError
from parmig.ram.bits import Bits, Index, mask_of_bits
from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.zero import zero_mask
from parmig.stream.ram_blocks import BlockEntry
from parmig.units import GIB, format_size

MAX_IMAGES_BYTES = 16 * GIB
"""The limit of all images together. Screens and ROMs take some 20 MiB, and only pages that are not zero take memory."""


class BlockImages:
    """A memory file for each of *entries*, none of which is empty; a context manager.

    Attributes:
        memory: the blocks and their descriptors.
        mappings: the same, mapped.

    Raises:
        StreamTooLongError: together they would be larger than MAX_IMAGES_BYTES.
    """

    def __init__(self, entries: Sequence[BlockEntry]) -> None:
        total_bytes = sum(entry.size_bytes for entry in entries)
        if total_bytes > MAX_IMAGES_BYTES:
            names = ", ".join(entry.name for entry in entries[:8])
            raise StreamTooLongError(
                f"blocks of {format_size(total_bytes)} travel in the device state, expected at most "
                f"{format_size(MAX_IMAGES_BYTES)}: {names}"
            )
        self.memory: list[BlockMemory] = []
        self.mappings: list[BlockMapping] = []
        for entry in entries:
            fd = os.memfd_create("parmig-image", os.MFD_CLOEXEC)
            block = RamBlock(entry.name, entry.pages * PAGE_BYTES)
            os.ftruncate(fd, block.size_bytes)
            self.memory.append(BlockMemory(block, fd))
            self.mappings.append(BlockMapping(self.memory[-1]))

    def close(self) -> None:
        """Give the memory back. Calling it twice is fine."""
        for mapping in self.mappings:
            mapping.close()
        for part in self.memory:
            os.close(part.fd)
        self.mappings, self.memory = [], []

    def __enter__(self) -> BlockImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def data_pages(mapping: BlockMapping, existing: Bits) -> Index:
    """Pages of the block that hold anything but zero, among those that exist."""
    index = np.flatnonzero(mask_of_bits(existing, 0, mapping.block.pages))
    with_data: Index = index[~zero_mask(mapping.words, index)]
    return with_data
