# SPDX-License-Identifier: Apache-2.0
"""Every error that parmig raises on purpose, and the exit code that the command line gives it.

::

    ParmigError                      1  failed, the source guest runs on
    ├── UsageError                   2  a command line or an option that makes no sense
    ├── RefusedError                 3  a check before the start said no
    │   ├── GuestRefusedError        3  this guest cannot be migrated as it is set up
    │   ├── HostRefusedError         3  this host does not allow or offer what was asked for
    │   ├── PeerRefusedError         3  the two sides do not match
    │   └── SnapshotRefusedError     3  the snapshot is damaged or of another guest
    ├── GuestError                   1  the virtual machine monitor failed or went away
    ├── StateError                   1  device state cannot be saved, read or loaded
    ├── TransportError               1  a connection could not be made or was lost
    │   ├── PeerUnreachableError     1  nobody answers at the address
    │   └── PeerLostError            1  the peer was there and is gone
    ├── ProtocolError                1  the peer said what the protocol does not allow
    ├── PeerFailedError              1  the peer reported its own failure
    ├── WorkerError                  1  a worker process failed or died
    ├── StreamError                  1  bytes that are no stream of QEMU's format
    │   ├── StreamTruncatedError     1  it ends too early
    │   ├── StreamTooLongError       1  a length over its limit, or bytes after the end
    │   ├── StreamMagicError         1  it is something else
    │   ├── StreamVersionError       1  a version of it that is not known
    │   ├── StreamSectionError       1  a section that is not known or not due
    │   ├── StreamFooterError        1  a section that does not end where it should
    │   └── StreamDataError          1  a word of RAM, a block or a value that makes no sense
    ├── SnapshotError                1  a snapshot file could not be written or read
    ├── MemoryFullError              1  the destination's memory file has no space left
    ├── NotConvergingError           1  the guest writes faster than the network carries
    ├── LimitExceededError           1  a wait or the whole migration took too long
    ├── StatusError                  1  an operation in a status that does not allow it
    ├── CancelledError             130  cancelled by the user
    ├── OutcomeUnknownError          4  lost the peer after hand-over: only the destination knows
    └── SourcePausedError            5  failed, and the source guest could not be set running again

Each message says what was expected, what was found, where, and what to do.
"""

from __future__ import annotations


class ParmigError(Exception):
    """The root of the tree: anything parmig raises on purpose.

    Attributes:
        exit_code: what the command line ends with.
        phase: where in the migration it happened; filled in by the engine.
    """

    exit_code = 1
    phase: str | None = None


class UsageError(ParmigError, ValueError):
    """A value that cannot be meant: an unknown scheme, a size that is no size."""

    exit_code = 2


class RefusedError(ParmigError):
    """A check before the start said no; no guest was touched."""

    exit_code = 3


class GuestRefusedError(RefusedError):
    """This guest cannot be migrated as it is set up; the message names the option that helps."""


class HostRefusedError(RefusedError):
    """This host does not allow or does not offer what was asked for."""


class PeerRefusedError(RefusedError):
    """The two sides do not match: version, blocks, page sizes, capabilities."""


class SnapshotRefusedError(RefusedError):
    """The snapshot file is damaged or of another guest; nothing was touched."""


class GuestError(ParmigError):
    """The virtual machine monitor failed, answered with an error, or went away."""


class StateError(ParmigError):
    """Device state could not be saved, read or loaded."""


class TransportError(ParmigError):
    """A connection could not be made or was lost."""


class PeerUnreachableError(TransportError):
    """Nobody answers at the address."""


class PeerLostError(TransportError):
    """The peer was connected and is gone."""


class ProtocolError(ParmigError):
    """The peer said something that the protocol does not allow."""


class PeerFailedError(ParmigError):
    """The peer reported a failure of its own; the message carries its words."""


class WorkerError(ParmigError):
    """A worker process failed or died."""


class StreamError(ParmigError):
    """Bytes that are no stream of QEMU's format; nothing after the offset was looked at.

    Args:
        message: what was expected, what was found, where, and what to do.
        offset_bytes: where in the stream, appended to the message; None where nobody knows.

    Attributes:
        offset_bytes: as given.
    """

    def __init__(self, message: str = "", offset_bytes: int | None = None) -> None:
        super().__init__(message if offset_bytes is None else f"{message} (at byte {offset_bytes} of the stream)")
        self.offset_bytes = offset_bytes


class StreamTruncatedError(StreamError):
    """The stream ends where more was promised."""


class StreamTooLongError(StreamError):
    """A length over its limit, or bytes after the end."""


class StreamMagicError(StreamError):
    """The first bytes are not those of QEMU's format: this is something else."""


class StreamVersionError(StreamError):
    """A version of the stream, or of a part of it, that is not known."""


class StreamSectionError(StreamError):
    """A section or command of a type, number or name that is not known, or not due where it stands."""


class StreamFooterError(StreamError):
    """A section is not followed by its footer: its reader and its writer disagree on its length."""


class StreamDataError(StreamError):
    """A RAM word, a block, a page number, an encoding or a value that makes no sense."""


class SnapshotError(ParmigError):
    """A snapshot file could not be written or read; the guest is as it was."""


class MemoryFullError(ParmigError):
    """The destination's memory file has no space left."""


class NotConvergingError(ParmigError):
    """The guest writes memory faster than it can be carried, within the allowed pause."""


class LimitExceededError(ParmigError):
    """A wait, or the whole migration, took longer than allowed."""


class StatusError(ParmigError):
    """An operation was asked for in a status that does not allow it."""


class CancelledError(ParmigError):
    """The user cancelled; the source guest runs on."""

    exit_code = 130


class OutcomeUnknownError(ParmigError):
    """The peer was lost after hand-over: the source stays paused, the destination may run."""

    exit_code = 4


class SourcePausedError(ParmigError):
    """It failed or was cancelled, and the source guest could not be set running again: it is paused."""

    exit_code = 5


def by_name(name: str) -> type[ParmigError]:
    """The error class called *name*, or :class:`ParmigError` when there is none.

    Used to bring back an error that a worker process reported by name and message.
    """
    found = globals().get(name)
    if isinstance(found, type) and issubclass(found, ParmigError):
        return found
    return ParmigError
