# SPDX-License-Identifier: Apache-2.0
"""Every error that parmig raises on purpose, and the exit code that the command line gives it.

::

    ParmigError                      1  failed, the source guest continues
    ├── UsageError                   2  a command line or an option that is not valid
    ├── RefusedError                 3  a check before the start failed
    │   ├── GuestRefusedError        3  this guest cannot be migrated as it is set up
    │   ├── HostRefusedError         3  this host does not allow or offer what was asked for
    │   ├── PeerRefusedError         3  the two sides do not match
    │   ├── PeerNotTrustedError      3  one side does not trust the keys of the other
    │   └── SnapshotRefusedError     3  the snapshot is damaged or of another guest
    ├── GuestError                   1  the virtual machine monitor failed or is gone
    ├── StateError                   1  device state cannot be saved, read or loaded
    ├── TransportError               1  a connection could not be made or was lost
    │   ├── PeerUnreachableError     1  no peer answers at the address
    │   └── PeerLostError            1  the peer was connected and is gone
    ├── ProtocolError                1  the peer sent what the protocol does not allow
    ├── PeerFailedError              1  the peer reported its own failure
    ├── WorkerError                  1  a worker process failed or died
    ├── StreamError                  1  bytes that are not a stream of QEMU's format
    │   ├── StreamTruncatedError     1  it ends too early
    │   ├── StreamTooLongError       1  a length over its limit, or bytes after the end
    │   ├── StreamMagicError         1  it is another format
    │   ├── StreamVersionError       1  an unknown version
    │   ├── StreamSectionError       1  an unknown section, or one out of order
    │   ├── StreamFooterError        1  a section that does not end where it should
    │   └── StreamDataError          1  a word of RAM, a block or a value that is invalid
    ├── SnapshotError                1  a snapshot file could not be written or read
    ├── TraceError                   1  a trace could not be written or read
    ├── RecordError                  1  the record of a hand-over could not be written or read
    ├── MemoryFullError              1  the destination's memory file has no space left
    ├── NotConvergingError           1  the guest writes faster than the network sends
    ├── LimitExceededError           1  a wait or the whole migration took too long
    ├── HookError                    1  a program of a --hook option failed
    ├── StatusError                  1  an operation in a status that does not allow it
    ├── CancelledError             130  cancelled by the user
    ├── OutcomeUnknownError          4  the peer was lost after the hand-over
    ├── SourcePausedError            5  failed, and the source guest could not be resumed
    └── NotVerifiedError             6  the guest moved, but its memory was not shown to be the same

A message says what happened, what was expected, and what to do, in this order.
"""

from __future__ import annotations


class ParmigError(Exception):
    """The root of the tree: every error that parmig raises on purpose.

    Attributes:
        exit_code: the exit code of the command line.
        phase: the phase of the migration in which it happened; the engine sets it.
    """

    exit_code = 1
    phase: str | None = None


class UsageError(ParmigError, ValueError):
    """A value that is not valid, such as an unknown scheme or a size without a number."""

    exit_code = 2


class TransportError(ParmigError):
    """A connection could not be made or was lost."""


class RefusedError(ParmigError):
    """A check before the start failed; no guest was touched."""

    exit_code = 3


class GuestRefusedError(RefusedError):
    """This guest cannot be migrated as it is set up; the message names the option that helps."""


class HostRefusedError(RefusedError):
    """This host does not allow or does not offer what was asked for."""


class PeerRefusedError(RefusedError):
    """The two sides do not match: version, memory, devices, capabilities."""


class PeerNotTrustedError(RefusedError, TransportError):
    """One side does not trust the keys of the other, or has none. No message of parmig was exchanged.

    It is a TransportError too: on a path to another host that answers there, a channel tries again.
    """


class SnapshotRefusedError(RefusedError):
    """The snapshot file is damaged or of another guest; nothing was touched."""


class GuestError(ParmigError):
    """The virtual machine monitor failed, answered with an error, or is gone."""


class StateError(ParmigError):
    """Device state could not be saved, read or loaded."""


class PeerUnreachableError(TransportError):
    """No peer answers at the address."""


class PeerLostError(TransportError):
    """The peer was connected and is gone."""


class ProtocolError(ParmigError):
    """The peer sent something that the protocol does not allow."""


class PeerFailedError(ParmigError):
    """The peer reported its own failure; the message contains the peer's message."""


class WorkerError(ParmigError):
    """A worker process failed or died."""


class StreamError(ParmigError):
    """Bytes that are not a stream of QEMU's format; nothing after the offset was read.

    Args:
        message: what happened, what was expected, and what to do.
        offset_bytes: where in the stream, appended to the message; None if it is unknown.

    Attributes:
        offset_bytes: as given.
    """

    def __init__(self, message: str = "", offset_bytes: int | None = None) -> None:
        super().__init__(message if offset_bytes is None else f"{message} (at byte {offset_bytes} of the stream)")
        self.offset_bytes = offset_bytes


class StreamTruncatedError(StreamError):
    """The stream ends too early."""


class StreamTooLongError(StreamError):
    """A length over its limit, or bytes after the end."""


class StreamMagicError(StreamError):
    """The first bytes are not those of QEMU's format."""


class StreamVersionError(StreamError):
    """The stream, or a part of it, has an unknown version."""


class StreamSectionError(StreamError):
    """A section or command has an unknown type, number or name, or is out of order."""


class StreamFooterError(StreamError):
    """No footer follows a section: its reader and its writer disagree on its length."""


class StreamDataError(StreamError):
    """A RAM word, a block, a page number, an encoding or a value is invalid."""


class SnapshotError(ParmigError):
    """A snapshot file could not be written or read; the guest is as it was."""


class TraceError(ParmigError):
    """A trace could not be recorded, written or read; the guest is as it was."""


class RecordError(ParmigError):
    """The record of a hand-over could not be written or read."""


class MemoryFullError(ParmigError):
    """The destination has no memory left for the guest."""


class NotConvergingError(ParmigError):
    """The guest writes memory faster than the network can send it, within the allowed pause."""


class LimitExceededError(ParmigError):
    """A wait, or the whole migration, exceeded its limit."""


class HookError(ParmigError):
    """A program that the user wanted to run at some moment failed."""


class StatusError(ParmigError):
    """The current status does not allow the operation."""


class CancelledError(ParmigError):
    """The user cancelled; the source guest continues."""

    exit_code = 130


class OutcomeUnknownError(ParmigError):
    """The peer was lost after the hand-over: the source stays paused, the destination may run."""

    exit_code = 4


class SourcePausedError(ParmigError):
    """The migration failed or was cancelled, and the source guest could not be resumed: it is paused."""

    exit_code = 5


class NotVerifiedError(ParmigError):
    """The guest runs at the destination, but ``--verify`` did not find its memory equal to that of the source."""

    exit_code = 6


def by_name(name: str) -> type[ParmigError]:
    """The error class called *name*, or :class:`ParmigError` if there is none.

    Restores an error that a worker process reported by name and message.
    """
    error_class = globals().get(name)
    if isinstance(error_class, type) and issubclass(error_class, ParmigError):
        return error_class
    return ParmigError
