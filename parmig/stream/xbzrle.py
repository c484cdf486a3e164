# SPDX-License-Identifier: Apache-2.0
"""Pages that do not travel as they are: XBZRLE, a difference from the page before, and COMPRESS, which is zlib.

An XBZRLE payload consists of pairs of counts: the number of bytes that stay, then the number of new bytes, which follow
the pair. A count has one or two bytes, seven bits each, low bits first. Only in the first pair the number of bytes that
stay may be 0. All bytes after the last pair stay.
"""

from __future__ import annotations

import zlib

import numpy as np

from parmig.errors import StreamDataError
from parmig.stream.flags import TARGET_PAGE_BYTES
from parmig.transport.transport import Buffer

MARK = 0x01
"""Stands before the length of an XBZRLE payload."""
MAX_COMPRESSED_BYTES = 4110
"""The longest that zlib makes of a page (its compressBound of 4096); QEMU refuses longer ones."""


def encode(old: Buffer, new: Buffer) -> bytes | None:
    """The page *new* as a difference from *old*. Empty: they are equal. None: it would not be shorter than a page."""
    was, now = (np.frombuffer(page, dtype=np.uint8) for page in (old, new))
    changed = (was != now).view(np.int8)
    edges = np.flatnonzero(np.diff(changed, prepend=np.int8(0), append=np.int8(0))).tolist()
    source, out, at = memoryview(new).cast("B"), bytearray(), 0
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        out += _count(start - at) + _count(end - start)
        out += source[start:end]
        at = end
        if len(out) >= TARGET_PAGE_BYTES:
            return None
    return bytes(out)


def _count(value: int) -> bytes:
    return bytes((value,)) if value < 0x80 else bytes((value & 0x7F | 0x80, value >> 7))


def decode(payload: Buffer, old: Buffer, offset_bytes: int | None = None) -> bytes:
    """The page that *payload* makes of the page *old*.

    Args:
        offset_bytes: of the page in the stream, for errors.

    Raises:
        StreamDataError: a count that is cut off, too long or 0 where it must not be, or one that leaves the page.
    """
    source, page = memoryview(payload).cast("B"), bytearray(old)
    at = place = 0
    while at < len(source):
        first = at == 0
        kept, at = _read_count(source, at, offset_bytes)
        new, at = _read_count(source, at, offset_bytes)
        place += kept
        if not (kept or first) or not new or place + new > len(page) or at + new > len(source):
            raise StreamDataError(
                f"an XBZRLE page keeps {kept} bytes and has {new} new ones at byte {place - kept}, expected fewer: "
                f"{len(source) - at} bytes are left",
                offset_bytes,
            )
        page[place : place + new] = source[at : at + new]
        place += new
        at += new
    return bytes(page)


def _read_count(source: memoryview, at: int, offset_bytes: int | None) -> tuple[int, int]:
    """The count at *at*, and where the next byte is."""
    if at < len(source) and source[at] < 0x80:
        return source[at], at + 1
    if at + 1 < len(source) and source[at + 1] < 0x80:
        return source[at] & 0x7F | source[at + 1] << 7, at + 2
    raise StreamDataError("an XBZRLE count is cut short or too long, expected one or two bytes", offset_bytes)


def inflate(payload: Buffer, offset_bytes: int | None = None) -> bytes:
    """The page that zlib made *payload* of.

    Raises:
        StreamDataError: it is no zlib stream, or not of just one page.
    """
    decoder = zlib.decompressobj()
    try:
        page = decoder.decompress(payload, TARGET_PAGE_BYTES)
        more = decoder.decompress(decoder.unconsumed_tail, 1)
    except zlib.error as error:
        raise StreamDataError(f"a compressed page cannot be read: {error}", offset_bytes) from error
    if len(page) != TARGET_PAGE_BYTES or more or not decoder.eof or decoder.unused_data:
        raise StreamDataError(f"a compressed page has another size, expected {TARGET_PAGE_BYTES} bytes", offset_bytes)
    return page
