# SPDX-License-Identifier: Apache-2.0
"""QEMU's mapped-ram layout: where each block's bitmap and pages lie in the file.

After a block's entry in the list of blocks comes a header of 28 bytes, then (at ``bitmap_offset``) one bit a page,
set where the page is stored, then (at ``pages_offset``) room for every page of the block at its own place. All offsets
are of the file, not of the stream in it. Source: QEMU 9.0 and later, ``migration/ram.c``. This module computes; it
reads and writes nothing but the header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from parmig.errors import StreamDataError, StreamVersionError
from parmig.stream.flags import TARGET_PAGE_BYTES
from parmig.units import MIB

HEADER_VERSION = 1
PAGES_ALIGNMENT_BYTES = MIB
"""QEMU begins the pages of each block at a multiple of this, so that reads and writes may be direct."""

_HEADER = struct.Struct(">IQQQ")  # version u32, page size u64, bitmap offset u64, pages offset u64
HEADER_BYTES = _HEADER.size  # 28


@dataclass(frozen=True)
class MappedRamHeader:
    """Where a block's bitmap and pages are in the file.

    Attributes:
        version: of this header.
        page_size_bytes: of the guest's pages.
        bitmap_offset_bytes: of the bitmap, in the file; one bit a page, little-endian, whole 64-bit words.
        pages_offset_bytes: of page 0, in the file.
    """

    version: int
    page_size_bytes: int
    bitmap_offset_bytes: int
    pages_offset_bytes: int

    def encode(self) -> bytes:
        """The 28 bytes of the header."""
        return _HEADER.pack(self.version, self.page_size_bytes, self.bitmap_offset_bytes, self.pages_offset_bytes)

    @classmethod
    def decode(cls, content: bytes | memoryview, offset_bytes: int | None = None) -> MappedRamHeader:
        """The header in the 28 bytes of *content*, which are at *offset_bytes* of the stream.

        Raises:
            StreamVersionError: of another version than 1.
            StreamDataError: pages of another size than 4096, or page 0 is not on a page border.
        """
        header = cls(*_HEADER.unpack(content))
        if header.version != HEADER_VERSION:
            raise StreamVersionError(
                f"the mapped-ram header has version {header.version}, expected {HEADER_VERSION}", offset_bytes
            )
        if header.page_size_bytes != TARGET_PAGE_BYTES or header.pages_offset_bytes % TARGET_PAGE_BYTES:
            raise StreamDataError(
                f"the mapped-ram header has pages of {header.page_size_bytes} bytes at {header.pages_offset_bytes:#x}, "
                f"expected pages of {TARGET_PAGE_BYTES} bytes on page borders of the file",
                offset_bytes,
            )
        return header


def bitmap_bytes(size_bytes: int) -> int:
    """Bytes of the bitmap of a block of *size_bytes*: a bit a page, rounded up to whole 64-bit words."""
    pages = -(-size_bytes // TARGET_PAGE_BYTES)
    return -(-pages // 64) * 8


def layout(header_offset_bytes: int, size_bytes: int) -> MappedRamHeader:
    """The header that QEMU would write at *header_offset_bytes* of the file for a block of *size_bytes*.

    The bitmap follows the header at once; the pages begin at the next MiB. The stream continues after the last page.
    """
    bitmap_offset_bytes = header_offset_bytes + HEADER_BYTES
    end_bytes = bitmap_offset_bytes + bitmap_bytes(size_bytes)
    pages_offset_bytes = -(-end_bytes // PAGES_ALIGNMENT_BYTES) * PAGES_ALIGNMENT_BYTES
    return MappedRamHeader(HEADER_VERSION, TARGET_PAGE_BYTES, bitmap_offset_bytes, pages_offset_bytes)
