# SPDX-License-Identifier: Apache-2.0
"""The digest of a file, which many workers make piece by piece, as they digest memory."""

from __future__ import annotations

from parmig.ram.blocks import PAGE_BYTES, BlockMemory, RamBlock
from parmig.ram.reach.mapped import BlockMapping
from parmig.ram.region_digest import RegionDigester
from parmig.ram.regions import Regions, cut
from parmig.stream.trailer import DIGEST_PIECE_BYTES


def digest_pieces(file: str, body_bytes: int) -> Regions:
    """The pieces of a file of *body_bytes*, whole pages."""
    return cut([RamBlock(file, body_bytes)], DIGEST_PIECE_BYTES // PAGE_BYTES)


class FileDigester:
    """Computes digests of pieces of a file.

    Args:
        fd: readable; used, not owned.
        file: its name, for errors.
        body_bytes: how many bytes of it are digested: whole pages.
    """

    def __init__(self, fd: int, file: str, body_bytes: int) -> None:
        self._pieces = digest_pieces(file, body_bytes)
        self._mapping = BlockMapping(BlockMemory(RamBlock(file, body_bytes), fd), writable=False)
        self._digester = RegionDigester()

    def digest(self, number: int) -> int:
        """The digest of piece *number*."""
        return self._digester.digest(self._mapping, self._pieces[number])

    def close(self) -> None:
        """Unmap the file."""
        self._mapping.close()
