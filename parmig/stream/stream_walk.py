# SPDX-License-Identifier: Apache-2.0
"""A stream of QEMU's format up to its first device: its configuration, its blocks, its pages.

Device state has no length, so everything from the first device to the end is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from parmig.errors import StreamSectionError
from parmig.stream.configuration import IGNORE_SHARED, MAPPED_RAM, Configuration
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import MigrationCommand
from parmig.stream.ram_blocks import RAM_IDSTR, BlockEntry, read_setup
from parmig.stream.ram_words import EncodedPage, PageRun, RamWordReader, ZeroRun
from parmig.stream.sections import Command, EndOfStream, SectionHead, SectionKind, SectionReader

PASSED_OVER = (MigrationCommand.SWITCHOVER_START,)
"""Commands that are skipped: they say nothing about what is in the stream, and mean nothing to plain devices."""

Run = PageRun | ZeroRun | EncodedPage


@dataclass(frozen=True, slots=True)
class StreamHead:
    """The content of a stream before its first page.

    Attributes:
        ram_section_id: None: the stream has no RAM.
        blocks: in the order of the list; in a ``mapped-ram`` file with their places.
    """

    configuration: Configuration
    ram_section_id: int | None
    blocks: tuple[BlockEntry, ...]

    @property
    def mapped_ram(self) -> bool:
        """Whether pages are at fixed places of the file."""
        return MAPPED_RAM in self.configuration.capabilities


class StreamWalk:
    """Reads *data* from its start to the first device: :meth:`head`, then :meth:`pages`.

    Both raise a StreamError if the stream is damaged, ends early, or holds what a snapshot cannot.
    """

    def __init__(self, data: MigrationDataFile) -> None:
        self._data = data
        self._sections = SectionReader(data)
        self._words: RamWordReader | None = None
        self._ram: SectionHead | None = None
        self._devices_offset_bytes = -1

    @property
    def devices_offset_bytes(self) -> int:
        """(after :meth:`pages`) Where the first device begins, or the mark of the end."""
        return self._devices_offset_bytes

    def head(self) -> StreamHead:
        """Header, configuration, and the list of blocks."""
        self._sections.read_header()
        configuration = self._sections.next()
        if not isinstance(configuration, Configuration):
            raise self._data.error(StreamSectionError, "expected a configuration first, found none", 8)
        self._ram = self._next_of_ram()
        if self._ram is None:
            return StreamHead(configuration, None, ())
        if self._ram.kind is not SectionKind.START:
            raise self._data.error(StreamSectionError, "RAM is not a live section", self._ram.offset_bytes)
        blocks = read_setup(
            self._data,
            ignore_shared=IGNORE_SHARED in configuration.capabilities,
            mapped_ram=MAPPED_RAM in configuration.capabilities,
        )
        self._words = RamWordReader(self._data, blocks)
        return StreamHead(configuration, self._ram.section_id, tuple(blocks))

    def pages(self) -> Iterator[Run]:
        """(after :meth:`head`) All pages of the stream, in its order; iterate to the end."""
        section = self._ram
        while section is not None and self._words is not None:
            yield from self._words.read_section()
            self._sections.footer(section)
            section = self._next_of_ram()

    def _next_of_ram(self) -> SectionHead | None:
        """The next section of RAM; None at the first device, or at the end."""
        while True:
            item = self._sections.next()
            match item:
                case SectionHead(idstr=idstr) if idstr == RAM_IDSTR:
                    return item
                case SectionHead(kind=SectionKind.FULL) | EndOfStream():
                    self._devices_offset_bytes = item.offset_bytes
                    return None
                case Command(command=command) if command in PASSED_OVER:
                    continue
                case SectionHead(idstr=idstr, offset_bytes=offset_bytes):
                    what, at = f"live state of {idstr!r}", offset_bytes
                case Command(command=command, offset_bytes=offset_bytes):
                    what, at = f"command {command.name}", offset_bytes
                case _:
                    what, at = "a second configuration", self._data.position_bytes
            raise self._data.error(
                StreamSectionError, f"{what} cannot be in a snapshot: only RAM and plain devices can", at
            )
