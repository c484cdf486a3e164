# SPDX-License-Identifier: Apache-2.0
"""The proposal's ``MigrationState``: a device that has state, and its bytes.

Example::

    class Timer:
        def __init__(self) -> None:
            self.ticks = 0
            self.armed = False

    timer = Timer()
    state = MigrationState(
        "timer",
        timer,
        [MigrationStateField("ticks", FIELD_TYPE_U64), MigrationStateField("armed", FIELD_TYPE_BOOL)],
    )
    data = migration_state_push(state)

:mod:`parmig.state.declare` makes the same of a class with annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from parmig.errors import StateError, StreamError, StreamTooLongError
from parmig.state.cursor import StateReader, StateWriter
from parmig.state.identity import check_instance, check_name, check_versions, refuse_version
from parmig.state.state_field import LoadPlan, StateField, within
from parmig.state.structs import Decoded, MigrationStateStruct, MigrationStateSubsection
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.vmdescription import DeviceDescription
from parmig.transport.memory import MemoryStream


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
        subsections: optional parts, named ``IDSTR/NAME``, after the fields.
    """

    idstr: str
    target: object
    fields: Sequence[StateField]
    instance_id: int = 0
    version: int = 1
    minimum_version: int = 1
    priority: int = 0
    pre_save: Callable[[], object] | None = None
    post_load: Callable[[int], object] | None = None
    subsections: Sequence[MigrationStateSubsection] = ()

    def __post_init__(self) -> None:
        """Refuse declarations that cannot be written; a mistake of the programmer, hence ValueError."""
        check_name(self.idstr)
        check_instance(self.name, self.instance_id)
        check_versions(self.name, self.version, self.minimum_version)
        try:
            self.struct.check(self.version, self.minimum_version)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error

    @property
    def name(self) -> str:
        """``idstr/instance_id``, as errors call the device."""
        return f"{self.idstr}/{self.instance_id}"

    def migration_state_push(self) -> bytes:
        """The device's fields as bytes, after its ``pre_save``.

        Raises:
            StateError: an attribute is missing or cannot be written as declared, or a hook failed.
        """
        return self.encode()[0]

    def migration_state_pop(self, data: bytes | bytearray | memoryview, version: int | None = None) -> None:
        """Set the device's attributes from the bytes of ``migration_state_push``, then call ``post_load``.

        Args:
            data: exactly the fields.
            version: of the layout of *data*; None: this side's own.

        Raises:
            StateError: the bytes are no such fields (nothing was set then), or the hook refused.
        """
        source = MigrationDataFile(MemoryStream(data), f"device {self.name}")
        try:
            decoded = self.decode(source, self.version if version is None else version)
            if not source.at_end():
                raise source.error(StreamTooLongError, "bytes follow the last field, expected none")
        except StreamError as error:
            raise StateError(str(error)) from error
        self.apply(self.plan(decoded))

    def encode(self) -> tuple[bytes, DeviceDescription]:
        """The device's bytes, after its ``pre_save``, and the description of just these.

        Raises:
            StateError: as :meth:`migration_state_push`.
        """
        writer = StateWriter()
        with within(f"device {self.name}"):
            body = self.struct.encode(self.target, writer, self.version)
            content = writer.content()
        described = DeviceDescription(
            name=self.idstr,
            instance_id=self.instance_id,
            vmsd_name=self.idstr,
            version=self.version,
            fields=body.fields,
            subsections=body.subsections,
        )
        return content, described

    def decode(self, data: MigrationDataFile, version: int) -> Decoded:
        """The device that comes next in *data*; sets nothing.

        Raises:
            StateError: of a version that is not known, or the bytes are no such values.
            StreamError: they are too few.
        """
        with within(f"device {self.name}"):
            refuse_version(version, self.version, self.minimum_version)
            return self.struct.decode(StateReader(data, f"device {self.name}"), version)

    def plan(self, decoded: Decoded) -> LoadPlan:
        """The plan to load *decoded*; sets nothing.

        Raises:
            StateError: an object that the device should hold is not there.
        """
        plan = LoadPlan()
        with within(f"device {self.name}"):
            decoded.struct.plan(decoded, self.target, plan)
        return plan

    def apply(self, plan: LoadPlan) -> None:
        """Set the attributes, then call the hooks.

        Raises:
            StateError: an attribute cannot be set, or a hook refused.
        """
        with within(f"device {self.name}"):
            plan.run()

    @cached_property
    def struct(self) -> MigrationStateStruct:
        """What the device consists of."""
        pre_save, post_load = self.pre_save, self.post_load
        return MigrationStateStruct(
            self.idstr,
            self.fields,
            self.subsections,
            pre_save=None if pre_save is None else lambda _: pre_save(),
            post_load=None if post_load is None else lambda _, version: post_load(version),
        )


def migration_state_push(state: MigrationState) -> bytes:
    """The fields of *state*'s device as bytes; see :meth:`MigrationState.migration_state_push`."""
    return state.migration_state_push()


def migration_state_pop(
    state: MigrationState, data: bytes | bytearray | memoryview, version: int | None = None
) -> None:
    """Set *state*'s device from bytes; see :meth:`MigrationState.migration_state_pop`."""
    state.migration_state_pop(data, version)
