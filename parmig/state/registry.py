# SPDX-License-Identifier: Apache-2.0
"""Devices with state, and the registry that saves and loads all of them.

A device record, big-endian::

    u8   length of idstr, then idstr (ASCII)
    u32  instance_id
    u32  version
    u32  length of what follows, in bytes
    ...  the fields, in the order of their declaration

Example::

    class Timer:
        def __init__(self) -> None:
            self.ticks = 0
            self.armed = False

    timer = Timer()
    registry = StateRegistry()
    registry.register(
        MigrationState(
            "timer",
            timer,
            [MigrationStateField("ticks", FIELD_TYPE_U64), MigrationStateField("armed", FIELD_TYPE_BOOL)],
        )
    )
    data = registry.save_all()

Nothing here knows what a device does, or how the bytes travel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parmig.errors import ParmigError, StateError
from parmig.state.fields import FieldValue, MigrationStateField, StateReader

_IDSTR_MAX_BYTES = 255
_U32_MAX = 0xFFFF_FFFF
_HEAD = struct.Struct(">III")  # instance_id u32, version u32, length u32


@dataclass(frozen=True, eq=False)
class MigrationState:
    """The declaration of one device's state.

    Attributes:
        idstr: what kind of device, 1 to 255 ASCII characters; the same on both sides.
        target: the object whose attributes the fields name.
        fields: what is saved, in this order.
        instance_id: which one of several of a kind.
        version: of the layout; records of newer versions are refused.
        minimum_version: the oldest layout that can still be loaded.
        priority: devices of higher priority are saved and loaded first; equal ones in order of registration.
        pre_save: called before the fields are read.
        post_load: called with the record's version after the fields were set; raises StateError to refuse.
    """

    idstr: str
    target: object
    fields: Sequence[MigrationStateField]
    instance_id: int = 0
    version: int = 1
    minimum_version: int = 1
    priority: int = 0
    pre_save: Callable[[], None] | None = None
    post_load: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        """Refuse declarations that cannot be written; a mistake of the programmer, hence ValueError."""
        if not (self.idstr.isascii() and self.idstr.isprintable() and 0 < len(self.idstr) <= _IDSTR_MAX_BYTES):
            raise ValueError(f"idstr {self.idstr!r} is not 1 to {_IDSTR_MAX_BYTES} printable ASCII characters")
        if not (0 <= self.instance_id <= _U32_MAX and 1 <= self.minimum_version <= self.version <= _U32_MAX):
            raise ValueError(f"{self.name}: instance_id or versions out of range")
        names = [field.name for field in self.fields]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name}: two fields of one name in {names}")

    @property
    def name(self) -> str:
        """``idstr/instance_id``, as errors call the device."""
        return f"{self.idstr}/{self.instance_id}"

    def migration_state_push(self) -> bytes:
        """The device's fields as bytes, after its ``pre_save``.

        Raises:
            StateError: an attribute is missing or cannot be written as declared, or the hook failed.
        """
        if self.pre_save is not None:
            self._guard("pre_save", self.pre_save)
        parts = []
        for field in self.fields:
            try:
                parts.append(field.encode(getattr(self.target, field.name)))
            except (AttributeError, StateError) as error:
                raise StateError(f"device {self.name}: {error}") from error
        return b"".join(parts)

    def migration_state_pop(self, data: bytes | bytearray | memoryview, version: int | None = None) -> None:
        """Set the device's attributes from the bytes of ``migration_state_push``, then call ``post_load``.

        Args:
            data: exactly the fields.
            version: of the layout of *data*; None: this side's own.

        Raises:
            StateError: the bytes are no such fields (nothing was set then), or the hook refused.
        """
        version = self.version if version is None else version
        self.apply(self.decode(data, version), version)

    def decode(self, data: bytes | bytearray | memoryview, version: int) -> dict[str, FieldValue]:
        """The fields in *data* by name; touches nothing.

        Raises:
            StateError: unknown version, or the bytes are too few, too many, or no such values.
        """
        if not self.minimum_version <= version <= self.version:
            raise StateError(
                f"device {self.name}: expected version {self.minimum_version} to {self.version}, found {version}; "
                "the destination must be at least as new as the source"
            )
        reader = StateReader(data, f"device {self.name}")
        values = {field.name: field.decode(reader) for field in self.fields if field.since_version <= version}
        reader.finish()
        return values

    def apply(self, values: dict[str, FieldValue], version: int) -> None:
        """Set attributes from what :meth:`decode` returned, then call ``post_load``.

        Raises:
            StateError: the hook refused.
        """
        for name, value in values.items():
            setattr(self.target, name, value)
        if self.post_load is not None:
            hook = self.post_load
            self._guard("post_load", lambda: hook(version))

    def _guard(self, what: str, hook: Callable[[], None]) -> None:
        try:
            hook()
        except ParmigError as error:
            raise StateError(f"device {self.name}: {error}") from error
        except Exception as error:
            raise StateError(f"device {self.name}: {what} failed: {error!r}") from error


def migration_state_push(state: MigrationState) -> bytes:
    """The fields of *state*'s device as bytes; see :meth:`MigrationState.migration_state_push`."""
    return state.migration_state_push()


def migration_state_pop(state: MigrationState, data: bytes | bytearray | memoryview) -> None:
    """Set *state*'s device from bytes; see :meth:`MigrationState.migration_state_pop`."""
    state.migration_state_pop(data)


class StateRegistry:
    """All devices of a guest, by idstr and instance_id."""

    def __init__(self) -> None:
        self._devices: dict[tuple[str, int], MigrationState] = {}

    def register(self, state: MigrationState) -> MigrationState:
        """Add a device and return it.

        Raises:
            StateError: there is one of this idstr and instance_id.
        """
        key = (state.idstr, state.instance_id)
        if key in self._devices:
            raise StateError(f"device {state.name} is registered already; give it another instance_id")
        self._devices[key] = state
        return state

    def devices(self) -> list[MigrationState]:
        """The devices in the order in which they are saved and loaded."""
        return sorted(self._devices.values(), key=lambda state: -state.priority)

    def save_all(self) -> bytes:
        """The records of all devices.

        Raises:
            StateError: a device cannot be saved.
        """
        parts = []
        for state in self.devices():
            content = state.migration_state_push()
            if len(content) > _U32_MAX:
                raise StateError(f"device {state.name}: {len(content)} bytes do not fit into one record")
            idstr = state.idstr.encode("ascii")
            parts += [bytes([len(idstr)]), idstr, _HEAD.pack(state.instance_id, state.version, len(content)), content]
        return b"".join(parts)

    def load_all(self, data: bytes | bytearray | memoryview) -> None:
        """Set all devices from the bytes of :meth:`save_all`.

        All records are read and checked before the first attribute is set. Only a ``post_load`` that
        refuses can leave devices half loaded; the guest must be discarded then.

        Raises:
            StateError: a record is damaged, of an unknown device, of a newer version, of another
                length or there twice, or a device has no record.
        """
        reader = StateReader(data, "device state")
        loaded: dict[tuple[str, int], tuple[dict[str, FieldValue], int]] = {}
        while reader.remaining_bytes:
            state, version, content = self._read_record(reader)
            key = (state.idstr, state.instance_id)
            if key in loaded:
                raise StateError(f"device {state.name}: expected one record, found a second")
            loaded[key] = (state.decode(content, version), version)
        missing = [state.name for state in self.devices() if (state.idstr, state.instance_id) not in loaded]
        if missing:
            raise StateError(f"device state: expected records of {', '.join(missing)}, found none")
        for state in self.devices():
            state.apply(*loaded[state.idstr, state.instance_id])

    def _read_record(self, reader: StateReader) -> tuple[MigrationState, int, memoryview]:
        raw = bytes(reader.take(reader.integer(1, "length of idstr"), "idstr"))
        instance_id, version, size_bytes = _HEAD.unpack(reader.take(_HEAD.size, f"head of the record of {raw!r}"))
        state = self._devices.get((raw.decode("ascii", "backslashreplace"), instance_id))
        if state is None:
            known = ", ".join(device.name for device in self.devices()) or "none"
            found = raw.decode("ascii", "backslashreplace")
            raise StateError(f"device state: unknown device {found}/{instance_id}; expected one of {known}")
        return state, version, reader.take(size_bytes, f"record of {state.name}")
