# SPDX-License-Identifier: Apache-2.0
"""Loads a stream into registered components: all devices or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parmig.errors import StateError
from parmig.state.device import MigrationState
from parmig.state.identity import refuse_version
from parmig.state.live import LiveState
from parmig.state.state_field import LoadPlan, within
from parmig.state.structs import Decoded
from parmig.stream.configuration import Configuration
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.sections import Command, EndOfStream, SectionHead, SectionKind, SectionReader


class StateLoader:
    """Loads from *data* once: read(), then apply().

    Args:
        lookup: the component of an idstr and instance_id; StateError when there is none.
        components: all that must be in the stream, in the order in which devices are set.
        data: where the stream begins.
    """

    def __init__(
        self,
        lookup: Callable[[str, int], MigrationState | LiveState],
        components: Sequence[MigrationState | LiveState],
        data: MigrationDataFile,
    ) -> None:
        self._lookup = lookup
        self._components = components
        self._data = data
        self._sections = SectionReader(data)
        self._begun: set[str] = set()
        self._decoded: dict[str, Decoded] = {}
        self._complete: set[str] = set()
        self._plans: list[tuple[MigrationState, LoadPlan]] = []

    def read(self, machine: str | None, capabilities: Sequence[str]) -> None:
        """Read the whole stream. Live components are loaded; of devices nothing is set yet.

        Raises:
            StateError, StreamError: as :meth:`parmig.state.state_registry.StateRegistry.load`.
        """
        self._sections.read_header()
        configuration = self._sections.next()
        if not isinstance(configuration, Configuration):
            raise StateError("the device state has no configuration at its start; check that parmig saved it")
        _compare(configuration, machine, capabilities)
        while not isinstance(item := self._sections.next(), EndOfStream):
            if not isinstance(item, SectionHead):
                raise StateError(f"the device state contains {_describe(item)}, expected sections of devices")
            self._section(item)
            self._sections.footer(item)
        self._sections.vmdescription()
        missing = [component.name for component in self._components if component.name not in self._complete]
        if missing:
            raise StateError(f"the device state has no complete record of {', '.join(missing)}, expected one each")
        devices = [component for component in self._components if isinstance(component, MigrationState)]
        self._plans = [(device, device.plan(self._decoded[device.name])) for device in devices]

    def apply(self) -> None:
        """(after :meth:`read`) Set the devices and call their hooks.

        Raises:
            StateError: an attribute cannot be set, or a ``post_load`` refused.
        """
        for device, plan in self._plans:
            device.apply(plan)

    def _section(self, head: SectionHead) -> None:
        with within("device state"):
            component = self._lookup(head.idstr, head.instance_id)
        is_head = head.kind in (SectionKind.START, SectionKind.FULL)
        if is_head and component.name in self._begun:
            raise StateError(f"device {component.name} has a second record, expected one")
        self._begun.add(component.name)
        if isinstance(component, LiveState):
            self._live_section(component, head)
        elif head.kind is SectionKind.FULL:
            self._decoded[component.name] = component.decode(self._data, head.version_id)
            self._complete.add(component.name)
        else:
            raise StateError(f"device {component.name} has a section {head.kind.name}, expected FULL")

    def _live_section(self, component: LiveState, head: SectionHead) -> None:
        if head.kind is SectionKind.FULL:
            raise StateError(f"device {component.name} has a FULL section, expected START, PART and END")
        with within(f"device {component.name}"):
            if head.kind is SectionKind.START:
                refuse_version(head.version_id, component.version, component.minimum_version)
                component.handlers.load_setup()
            component.handlers.load(self._data, head.kind, head.version_id)
        if head.kind is SectionKind.END:
            self._complete.add(component.name)


def _compare(configuration: Configuration, machine: str | None, capabilities: Sequence[str]) -> None:
    if machine is not None and configuration.machine != machine:
        raise StateError(f"the device state is of machine {configuration.machine!r}, expected {machine!r}")
    if set(configuration.capabilities) != set(capabilities):
        expected, seen = (", ".join(sorted(names)) or "none" for names in (capabilities, configuration.capabilities))
        raise StateError(f"the device state has capabilities: {seen}, expected: {expected}")


def _describe(item: Configuration | Command) -> str:
    return f"command {item.command.name}" if isinstance(item, Command) else "a configuration"
