# SPDX-License-Identifier: Apache-2.0
"""What a worker of a snapshot gets once, at its start. All other messages are in ``engine.messages``."""

from __future__ import annotations

from parmig.engine.worker_setups import MemorySetup


class SaveSetup(MemorySetup, frozen=True):
    """To a worker that writes.

    Attributes:
        file: name of the snapshot, for errors.
        mapped: whether pages have fixed places; else they go into sections of a sequential stream.
        pages_offsets_bytes: (mapped) where page 0 of each block is in the file.
    """

    batch_bytes: int
    file: str
    mapped: bool
    pages_offsets_bytes: tuple[int, ...]


class RestoreSetup(MemorySetup, frozen=True):
    """To a worker that reads.

    Attributes:
        file: name of the snapshot, for errors.
        body_bytes: its size without parmig's trailer.
        bitmap_offsets_bytes: (mapped) where the bitmap of each block is in the file.
        pages_offsets_bytes: (mapped) where page 0 of each block is in the file.
    """

    file: str
    body_bytes: int
    bitmap_offsets_bytes: tuple[int, ...]
    pages_offsets_bytes: tuple[int, ...]
