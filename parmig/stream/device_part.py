# SPDX-License-Identifier: Apache-2.0
"""Where the devices of a stream are, and what describes them: found from the end, without reading them."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from parmig.errors import StreamDataError, StreamError
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import MIGRATION_VM_EOF
from parmig.stream.sections import SectionHead, SectionKind, SectionReader
from parmig.stream.vmdescription import TAIL_BYTES, find
from parmig.transport.file import FileStream

OPAQUE_IDSTR = "parmig/guest-state"
"""The device that holds the bytes of a guest whose state is no stream: be32 length, then the bytes."""

FILLING = b"\n"
"""Fills the file from the description to the next page, where parmig's trailer begins."""

Description = dict[str, Any]
"""The JSON of a VMDESCRIPTION, as it is."""


def find_end(fd: int, end: int) -> tuple[int, Description | None, bool]:
    """The end of a stream that ends at byte *end* of the file *fd*, without filling.

    Returns:
        where the mark of the end is; the description, if there is one; whether nothing follows it.

    Raises:
        StreamDataError: the stream does not end with its mark, or its description cannot be read.
    """
    tail_at = max(0, end - TAIL_BYTES)
    tail = os.pread(fd, end - tail_at, tail_at).rstrip(FILLING)
    exact = tail_at + len(tail) == end
    described = find(tail)
    description: Description | None = None
    if described is not None:
        exact = exact and described.stop == len(tail)
        try:
            description = msgspec.json.decode(tail[described], type=Description)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise StreamDataError(f"the description of devices cannot be read: {error}", tail_at) from error
        tail = tail[: described.start - 5]  # without the type and the length before it
    if not tail or tail[-1] != MIGRATION_VM_EOF:
        raise StreamDataError("the stream does not end with its mark: it was cut short", tail_at + len(tail))
    return tail_at + len(tail) - 1, description, exact


def find_opaque(fd: int, devices: range) -> range | None:
    """The bytes of a guest whose state is no stream, among *devices* of a snapshot; None: these are real devices."""
    data = MigrationDataFile(FileStream(fd, "devices", offset_bytes=devices.start), "devices")
    try:
        head = SectionReader(data).next()
        if not isinstance(head, SectionHead) or (head.kind, head.idstr) != (SectionKind.FULL, OPAQUE_IDSTR):
            return None
        size_bytes = data.get_be32()
    except StreamError:
        return None
    begin = devices.start + data.position_bytes
    return range(begin, min(begin + size_bytes, devices.stop))
