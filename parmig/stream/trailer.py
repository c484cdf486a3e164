# SPDX-License-Identifier: Apache-2.0
"""The trailer that parmig appends to its snapshots: which guest it is, and the digest of everything before it.

It is text after the VMDESCRIPTION. It begins on a page border (newlines fill the gap), has no NUL and no brace, and is
shorter than a page. QEMU reads no further than the VMDESCRIPTION. analyze-migration.py looks for the last NUL of the
file and the brace after it, and so never sees the trailer. See ``docs/format.md``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import xxhash

from parmig.errors import StreamDataError, StreamVersionError
from parmig.stream.flags import TARGET_PAGE_BYTES

VERSION = 1

MARKED_SECTION_ID = 0x7061726D
"""("parm") The number of RAM's section in a file that ends with a trailer. A file with this number but no trailer was
cut short. QEMU accepts any number; its own are small."""

DIGEST_PIECE_BYTES = 64 << 20
"""The file is digested in pieces of this size, each on its own, so that many processes can do it."""

_MAGIC = b"parmig-snapshot "
_LINES = re.compile(
    rb"parmig-snapshot (?P<version>\d{1,4})\n"
    rb"written-by (?P<parmig>[\x21-\x7a]{1,64})\n"
    rb"guest (?P<guest>[\x21-\x7a]{1,64})\n"
    rb"running (?P<running>yes|no)\n"
    rb"body-bytes (?P<body>\d{1,19})\n"
    rb"digest (?P<digest>[0-9a-f]{32})\n"
    rb"check (?P<check>[0-9a-f]{16})\n"
)


@dataclass(frozen=True, slots=True)
class Trailer:
    """The trailer of a snapshot.

    Attributes:
        parmig: version of the writer.
        guest: kind of the guest: ``qemu``, ``synthetic``.
        body_bytes: of the file before the trailer: whole pages.
        digest: of those bytes, made by ``ram.region_digest`` from pieces of DIGEST_PIECE_BYTES; 32 hexadecimal digits.
        running: whether the guest ran when it was saved.
    """

    parmig: str
    guest: str
    body_bytes: int
    digest: str
    running: bool = True

    def encode(self) -> bytes:
        """The text, with a check of its own in the last line.

        Raises:
            StreamDataError: a value that cannot be in it.
        """
        text = (
            f"parmig-snapshot {VERSION}\nwritten-by {self.parmig}\nguest {self.guest}\n"
            f"running {'yes' if self.running else 'no'}\nbody-bytes {self.body_bytes}\ndigest {self.digest}\n"
        ).encode()
        text += f"check {xxhash.xxh3_64_hexdigest(text)}\n".encode()
        if not _LINES.fullmatch(text):
            raise StreamDataError(
                f"{self} cannot be written, expected names of 1 to 64 ASCII characters without spaces"
            )
        return text


def trailer_offset(file_bytes: int) -> int:
    """Where in a file of that size its trailer begins, if it has one."""
    return max(0, file_bytes - 1) // TARGET_PAGE_BYTES * TARGET_PAGE_BYTES


def decode(content: bytes, offset_bytes: int) -> Trailer | None:
    """The trailer in *content*, which is all of the file from *offset_bytes* on; None: it is no trailer.

    Raises:
        StreamVersionError: of another version.
        StreamDataError: it begins like a trailer and is damaged.
    """
    if not content.startswith(_MAGIC):
        return None
    version = content[len(_MAGIC) :].partition(b"\n")[0]
    if version.isdigit() and len(version) < 5 and int(version) != VERSION:
        raise StreamVersionError(f"the trailer has version {int(version)}, expected {VERSION}", offset_bytes)
    match = _LINES.fullmatch(content)
    check_at = content.rfind(b"check ")
    if match is None or xxhash.xxh3_64_hexdigest(content[:check_at]).encode() != match["check"]:
        raise StreamDataError("the trailer, which holds the digest of the file, is damaged", offset_bytes)
    trailer = Trailer(
        match["parmig"].decode(),
        match["guest"].decode(),
        int(match["body"]),
        match["digest"].decode(),
        running=match["running"] == b"yes",
    )
    if trailer.body_bytes != offset_bytes:
        raise StreamDataError(
            f"the trailer is at byte {offset_bytes} of the file, expected byte {trailer.body_bytes}; bytes were added "
            "or lost before it",
            offset_bytes,
        )
    return trailer
