# SPDX-License-Identifier: Apache-2.0
"""Saves the stream of all components in steps, so that it can begin while the guest runs."""

from __future__ import annotations

from collections.abc import Sequence

from parmig.state.device import MigrationState
from parmig.state.live import LiveState
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.flags import TARGET_PAGE_BYTES
from parmig.stream.section_writer import MAX_VMDESCRIPTION_BYTES, SectionWriter
from parmig.stream.vmdescription import DeviceDescription, FieldDescription, StructDescription, VmDescription, build


class StateSaver:
    """Saves once: setup(), iterate() any number of times, complete().

    Every method also raises what the handlers and the transport of *data* raise; the stream has no end then.

    Args:
        live: in the order in which they are written.
        devices: likewise; they come after all *live* ones.
        data: where the stream begins.
    """

    def __init__(self, live: Sequence[LiveState], devices: Sequence[MigrationState], data: MigrationDataFile) -> None:
        self._live = list(enumerate(live))
        self._devices = list(enumerate(devices, len(live)))
        self._data = data
        self._sections = SectionWriter(data)
        self._configuration: StructDescription | None = None

    def setup(self, machine: str, capabilities: Sequence[str] = ()) -> None:
        """Write header, configuration and every START. The guest may run.

        Raises:
            StreamError: *machine* or *capabilities* cannot be written.
        """
        self._sections.header()
        self._sections.configuration(machine, capabilities)
        self._configuration = describe_configuration(machine, capabilities)
        for number, component in self._live:
            self._sections.start(number, component.idstr, component.instance_id, component.version)
            component.handlers.save_setup(self._data)
            self._sections.footer(number)

    def iterate(self) -> bool:
        """Write a PART of every live component and return whether none had more. The guest may run."""
        done = True
        for number, component in self._live:
            self._sections.part(number)
            done &= component.handlers.save_iterate(self._data)
            self._sections.footer(number)
        return done

    def complete(self) -> None:
        """Write every END, every device, the end and the description, and flush. The guest is paused.

        Raises:
            StateError: a device cannot be saved.
        """
        for number, component in self._live:
            self._sections.end(number)
            component.handlers.save_complete(self._data)
            self._sections.footer(number)
        described = [self._save_device(number, state) for number, state in self._devices]
        self._sections.eof()
        description = build(
            VmDescription(configuration=self._configuration, page_size=TARGET_PAGE_BYTES, devices=described)
        )
        # Loading does not need the description, so a guest with too many devices for it is saved without it.
        if len(description) <= MAX_VMDESCRIPTION_BYTES:
            self._sections.vmdescription(description)
        self._data.flush_data()

    def _save_device(self, number: int, state: MigrationState) -> DeviceDescription:
        content, described = state.encode()
        self._sections.full(number, state.idstr, state.instance_id, state.version)
        self._data.put_buffer(content)
        self._sections.footer(number)
        return described


def describe_configuration(machine: str, capabilities: Sequence[str]) -> StructDescription:
    """The description of the configuration's bytes. The names are QEMU's, because readers look for them."""
    description = StructDescription(
        vmsd_name="configuration",
        version=1,
        fields=[
            FieldDescription(name="len", type="uint32", size=4),
            FieldDescription(name="name", type="buffer", size=len(machine)),
        ],
    )
    if capabilities:
        names = [
            FieldDescription(name="capabilities", index=index, type="capability", size=1 + len(name))
            for index, name in enumerate(capabilities)
        ]
        fields = [FieldDescription(name="caps_count", type="uint32", size=4), *names]
        description.subsections.append(
            StructDescription(vmsd_name="configuration/capabilities", version=1, fields=fields)
        )
    return description
