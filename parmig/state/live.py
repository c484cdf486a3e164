# SPDX-License-Identifier: Apache-2.0
"""Live components: RAM, and everything else that is too large to be saved while the guest is paused.

Instead of declared fields, a live component has handlers that write and read its bytes, a part at a time while the
guest runs. It is registered like a device. Its handlers must know where their bytes end, because a section has no
length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from parmig.state.identity import check_instance, check_name, check_versions
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.sections import SectionKind


class LiveHandlers(ABC):
    """The handlers of a live component. Any ParmigError ends the saving or loading; the caller frees what it holds."""

    @abstractmethod
    def save_setup(self, data: MigrationDataFile) -> None:
        """Write the body of START: what there is. The guest may run."""

    @abstractmethod
    def save_iterate(self, data: MigrationDataFile) -> bool:
        """Write the body of one PART and return whether all that is known to need writing was written.

        The guest may run, so there may be more soon.
        """

    @abstractmethod
    def save_complete(self, data: MigrationDataFile) -> None:
        """Write the body of END: all that is left. The guest is paused."""

    @abstractmethod
    def load_setup(self) -> None:
        """Prepare: a START comes next."""

    @abstractmethod
    def load(self, data: MigrationDataFile, kind: SectionKind, version: int) -> None:
        """Read the body of a START, PART or END, exactly, and put it in its place at once.

        Args:
            data: where the body begins.
            kind: which of them.
            version: of the layout, one that the registration allows.

        Raises:
            StateError, StreamError: it is damaged or does not fit.
        """


@dataclass(frozen=True, eq=False)
class LiveState:
    """The registration of a live component.

    Attributes:
        idstr: what it is, 1 to 255 ASCII characters; the same on both sides.
        handlers: what it does.
        instance_id: which one of several of a kind.
        version: of what the handlers write; newer ones are refused.
        minimum_version: the oldest that they read.
        priority: components of higher priority come first.
    """

    idstr: str
    handlers: LiveHandlers
    instance_id: int = 0
    version: int = 1
    minimum_version: int = 1
    priority: int = 0

    def __post_init__(self) -> None:
        """Refuse declarations that cannot be written; a mistake of the programmer, hence ValueError."""
        check_name(self.idstr)
        check_instance(self.name, self.instance_id)
        check_versions(self.name, self.version, self.minimum_version)

    @property
    def name(self) -> str:
        """``idstr/instance_id``, as errors call it."""
        return f"{self.idstr}/{self.instance_id}"
