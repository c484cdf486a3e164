# SPDX-License-Identifier: Apache-2.0
"""All components of a guest that have state, and the stream that they are saved to and loaded from.

The stream is QEMU's: header, configuration, then START, PART and END of each live component, one FULL section for
each device, EOF, and a VMDESCRIPTION that describes the devices' bytes to readers without the declarations.

Nothing here knows what a device does, or how the bytes travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from parmig.errors import StateError, StreamError, StreamTooLongError
from parmig.state.device import MigrationState
from parmig.state.live import LiveState
from parmig.state.state_loader import StateLoader
from parmig.state.state_saver import StateSaver
from parmig.stream.data_file import MigrationDataFile
from parmig.transport.memory import MemoryStream

MACHINE = "parmig"
"""The machine type in streams of guests that name none."""

_C = TypeVar("_C", MigrationState, LiveState)


class StateRegistry:
    """All components of a guest, by idstr and instance_id."""

    def __init__(self) -> None:
        self._components: dict[tuple[str, int], MigrationState | LiveState] = {}

    def register(self, component: _C) -> _C:
        """Add a device or a live component and return it.

        Raises:
            StateError: there is one of this idstr and instance_id.
        """
        key = (component.idstr, component.instance_id)
        if key in self._components:
            raise StateError(f"device {component.name} is already registered; give it another instance_id")
        self._components[key] = component
        return component

    def lookup(self, idstr: str, instance_id: int = 0) -> MigrationState | LiveState:
        """The component of this name.

        Raises:
            StateError: there is none; names those that there are.
        """
        component = self._components.get((idstr, instance_id))
        if component is None:
            known = ", ".join(other.name for other in self.components()) or "none"
            raise StateError(f"device {idstr}/{instance_id} is unknown, expected one of {known}")
        return component

    def components(self) -> list[MigrationState | LiveState]:
        """All of them, in order of priority."""
        return sorted(self._components.values(), key=lambda component: -component.priority)

    def devices(self) -> list[MigrationState]:
        """The devices in the order in which they are saved and loaded."""
        return [component for component in self.components() if isinstance(component, MigrationState)]

    def live(self) -> list[LiveState]:
        """The live components in the order in which they are saved."""
        return [component for component in self.components() if isinstance(component, LiveState)]

    def save_all(self, *, machine: str = MACHINE, capabilities: Sequence[str] = ()) -> bytes:
        """The stream of all components of a paused guest.

        Args:
            machine: the machine type, at most 255 ASCII characters.
            capabilities: those of QEMU that change the format of a live component.

        Raises:
            StateError: a device cannot be saved.
            StreamError: *machine* or *capabilities* cannot be written.
        """
        transport = MemoryStream()
        self.save(MigrationDataFile(transport, "device state"), machine=machine, capabilities=capabilities)
        return bytes(transport.written)

    def save(self, data: MigrationDataFile, *, machine: str = MACHINE, capabilities: Sequence[str] = ()) -> None:
        """Write the stream of all components of a paused guest to *data*, and flush it.

        To begin while the guest runs, use :meth:`saver`.

        Raises:
            StateError, StreamError: as :meth:`save_all`.
            ParmigError: *data* cannot be written.
        """
        saver = self.saver(data)
        saver.setup(machine, capabilities)
        while not saver.iterate():
            pass
        saver.complete()

    def saver(self, data: MigrationDataFile) -> StateSaver:
        """An object that saves in steps and can begin while the guest runs. It leaves out what is registered later."""
        return StateSaver(self.live(), self.devices(), data)

    def load_all(
        self,
        data: bytes | bytearray | memoryview,
        *,
        machine: str | None = None,
        capabilities: Sequence[str] = (),
    ) -> None:
        """Load all components from the bytes of :meth:`save_all`.

        All devices are read and checked before the first attribute of one is set. Only a ``post_load`` that refuses
        can leave devices half loaded; the guest must be discarded then. Live components are loaded as they come.

        Args:
            data: the whole stream, nothing after it.
            machine: the machine type that it must be of; None: any.
            capabilities: those that it must have been saved with.

        Raises:
            StateError: a device is unknown, there twice, not there, of a version that is not known, or has values that
                it cannot have; the stream is of another machine type, damaged or cut short.
        """
        source = MigrationDataFile(MemoryStream(data), "device state")
        loader = StateLoader(self.lookup, self.components(), source)
        try:
            loader.read(machine, capabilities)
            if not source.at_end():
                raise source.error(StreamTooLongError, "bytes follow the stream, expected none")
        except StreamError as error:
            raise StateError(str(error)) from error
        loader.apply()

    def load(self, data: MigrationDataFile, *, machine: str | None = None, capabilities: Sequence[str] = ()) -> None:
        """Load all components from a stream; what follows it in *data* is left there.

        Raises:
            StateError: as :meth:`load_all`.
            StreamError: the stream is damaged or cut short.
            ParmigError: *data* cannot be read.
        """
        loader = StateLoader(self.lookup, self.components(), data)
        loader.read(machine, capabilities)
        loader.apply()
