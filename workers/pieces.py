# SPDX-License-Identifier: Apache-2.0
"""Digests pieces of a snapshot file, for the workers that write it and those that read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parmig.snapshot.file_digest import FileDigester


def digest_file(
    numbers: Sequence[int], fd: int, file: str, body_bytes: int, done: Callable[[], None]
) -> dict[int, int]:
    """The digests of pieces *numbers* of the first *body_bytes* of the file *fd*, which is called *file*.

    *done* is called for each piece.
    """
    if not numbers:
        return {}
    digester = FileDigester(fd, file, body_bytes)
    digests = {}
    for number in numbers:
        done()
        digests[number] = digester.digest(number)
    digester.close()
    return digests
