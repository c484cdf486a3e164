# SPDX-License-Identifier: Apache-2.0
"""Where the fields of a device are read from and written to: a place in a stream, and pieces of bytes.

Integers are big-endian and unsigned, as in QEMU's streams. Nothing here knows fields.
"""

from __future__ import annotations

from parmig.errors import StateError, StreamTruncatedError
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import MAX_NAME_BYTES, MIGRATION_VM_SUBSECTION

OBJECTS_MAX = 1 << 16
"""The most structs and buffers in all arrays of one device. Each takes some 400 bytes once it is read, for perhaps one
byte in the stream, so their number is limited whatever the arrays' own limits are. Arrays of numbers take only their
bytes."""

_HEAD_BYTES = 2  # of a subsection, before its name: type, length of the name


def subsection_name(data: bytes | memoryview, parent: str) -> str | None:
    """The name of the subsection of *parent* whose head *data* begins with; None: it is something else.

    Only its name, which begins with ``parent/``, distinguishes a subsection from other bytes.
    """
    if len(data) < _HEAD_BYTES or data[0] != MIGRATION_VM_SUBSECTION:
        return None
    name = bytes(data[_HEAD_BYTES : _HEAD_BYTES + data[1]])
    if len(name) < data[1] or not name.startswith(f"{parent}/".encode("ascii")):
        return None
    return name.decode("ascii", "backslashreplace")


class _Objects:
    """Counts the objects in all arrays of a device."""

    def __init__(self) -> None:
        self._objects = 0

    def add_objects(self, count: int) -> None:
        """Count *count* more objects.

        Raises:
            StateError: those are too many.
        """
        self._objects += count
        if self._objects > OBJECTS_MAX:
            raise StateError(f"arrays have more than {OBJECTS_MAX} structs and buffers; use arrays of numbers")


class StateReader(_Objects):
    """A device's place in a stream; reads no byte that the stream does not have.

    Args:
        data: where the device begins; not owned.
        owner: whose bytes these are, for error messages.
    """

    def __init__(self, data: MigrationDataFile, owner: str) -> None:
        super().__init__()
        self._data = data
        self.owner = owner

    def take(self, size_bytes: int, what: str) -> bytes:
        """The next *size_bytes*. Memory is asked for only as far as bytes arrive.

        Raises:
            StreamTruncatedError: fewer are left; the message names their purpose.
        """
        start_bytes = self._data.position_bytes
        try:
            return self._data.get_buffer(size_bytes, size_bytes)
        except StreamTruncatedError as error:
            raise StreamTruncatedError(
                f"{self.owner}: {what} needs {size_bytes} bytes, and fewer are left; the state is cut short or damaged",
                start_bytes,
            ) from error

    def integer(self, size_bytes: int, what: str) -> int:
        """The next integer of *size_bytes*.

        Raises:
            StreamTruncatedError: fewer bytes are left.
        """
        return int.from_bytes(self.take(size_bytes, what), "big")

    def subsection(self, parent: str) -> tuple[str, int] | None:
        """Name and version of the subsection of *parent* that begins here, its head taken; None: there is none."""
        name = subsection_name(self._peek(), parent)
        if name is None:
            return None
        self._data.get_byte()
        self._data.get_buffer(self._data.get_byte())
        return name, self.integer(4, f"version of subsection {name!r}")

    def _peek(self) -> bytes | memoryview:
        """The head of the subsection that comes next, or fewer bytes."""
        if self._data.at_end() or self._data.peek_byte() != MIGRATION_VM_SUBSECTION:
            return b""
        try:
            size_bytes = _HEAD_BYTES + self._data.peek_byte(1)
            return self._data.peek_view(size_bytes, size_bytes)
        except StreamTruncatedError:
            return b""  # so few are left that it is something else, or damage that shows soon


class StateWriter(_Objects):
    """The bytes of a device as they come, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes = 0
        self._pieces: list[bytes] = []
        self._struct_ends: list[tuple[int, str]] = []

    def put(self, content: bytes) -> int:
        """Append *content* and return its length in bytes."""
        self._pieces.append(content)
        self.size_bytes += len(content)
        return len(content)

    def subsection(self, name: str, version: int) -> None:
        """Append the head of a subsection."""
        self.put(bytes([MIGRATION_VM_SUBSECTION, len(name)]) + name.encode("ascii") + version.to_bytes(4, "big"))

    def end_struct(self, name: str) -> None:
        """Note that the struct *name* is complete: what follows must not look like a subsection of it."""
        self._struct_ends.append((self.size_bytes, name))

    def content(self) -> bytes:
        """Everything that was put.

        Raises:
            StateError: what follows a nested struct looks like a subsection of it, so that no reader could
                tell; the values of a hostile guest can be like that.
        """
        content = b"".join(self._pieces)
        view = memoryview(content)
        for position, name in self._struct_ends:
            subsection = subsection_name(view[position : position + _HEAD_BYTES + MAX_NAME_BYTES], name)
            if subsection is not None:
                raise StateError(
                    f"the value after struct {name!r} looks like its subsection {subsection!r}, so it cannot be saved"
                )
        return content
