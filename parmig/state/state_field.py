# SPDX-License-Identifier: Apache-2.0
"""What fields of every kind have: a name, versions, a default, and perhaps a number of elements.

A counted field begins with its count of elements (u32), described as a field ``NAME.count`` of its own;
a field of fixed length, or one whose length another field holds, has no count.
"""

from __future__ import annotations

import copy
import enum
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, SupportsIndex, cast

from parmig.errors import ParmigError, StateError
from parmig.state.cursor import StateReader, StateWriter
from parmig.state.identity import U32_MAX
from parmig.stream.vmdescription import FieldDescription

COUNT_MAX = U32_MAX
"""Largest count of a counted field: the count is a u32."""

_COUNT_BYTES = 4


class Missing(enum.Enum):
    """The type of MISSING."""

    MISSING = "no default"


MISSING = Missing.MISSING
"""The default of a field that has none."""


class LoadPlan:
    """What loading will do: set attributes of objects, then call hooks."""

    def __init__(self) -> None:
        self.assignments: list[tuple[object, str, object]] = []
        self.hooks: list[Callable[[], None]] = []

    def run(self) -> None:
        """Set the attributes and call the hooks.

        Raises:
            StateError: an attribute cannot be set, or a hook refused.
        """
        for target, name, value in self.assignments:
            guarded(f"setting {name!r}", setattr, target, name, value)
        for hook in self.hooks:
            hook()


def guarded(what: str, function: Callable[..., Any], *args: object) -> Any:
    """Call *function*, which belongs to a device, and return its result.

    Raises:
        StateError: whatever it raised.
    """
    try:
        return function(*args)
    except ParmigError as error:
        raise StateError(str(error)) from error
    except Exception as error:
        raise StateError(f"{what} failed: {error!r}") from error


@contextmanager
def within(what: str) -> Iterator[None]:
    """Begin the message of a StateError from inside with *what*."""
    try:
        yield
    except StateError as error:
        raise StateError(f"{what}: {error}") from error


class StateField(ABC):
    """A field of any kind.

    Attributes:
        name: attribute of the object that is saved and set.
        since_version: the version that brought the field; records of older versions lack it.
        until_version: the last version that has it; None: it is still there. It is read from records of
            old versions, for ``post_load`` to convert, and no longer written.
        default: what the attribute is set to (a deep copy) by a record that lacks the field; MISSING: it is left.
    """

    name: str
    since_version: int
    until_version: int | None
    default: object = MISSING

    @property
    @abstractmethod
    def what(self) -> str:
        """Name and type, for messages."""

    @abstractmethod
    def encode(
        self, value: object, siblings: Mapping[str, object], writer: StateWriter, version: int
    ) -> list[FieldDescription]:
        """Write *value* and return the description of what was written.

        Args:
            value: of the attribute.
            siblings: values of the fields before it in the same struct, by name.
            writer: takes the bytes.
            version: of the record.

        Raises:
            StateError: *value* is of another type, out of range or of another length.
        """

    @abstractmethod
    def decode(self, reader: StateReader, siblings: Mapping[str, Any], version: int) -> Any:
        """The value that comes next; touches nothing but *reader*.

        Raises:
            StateError: the bytes are no such value.
            StreamError: they are too few.
        """

    @property
    def is_integer(self) -> bool:
        """Whether the value is one integer, so that another field can take its length from it."""
        return False

    def exists(self, version: int) -> bool:
        """Whether records of *version* have the field."""
        return self.since_version <= version <= self.last_version

    @property
    def last_version(self) -> int:
        """The last version that has the field, U32_MAX when there is no last one."""
        return U32_MAX if self.until_version is None else self.until_version

    def plan(self, target: object, value: Any, plan: LoadPlan) -> None:
        """Add to *plan* the steps that set *value*, which :meth:`decode` returned, in *target*.

        Raises:
            StateError: *target* cannot take it.
        """
        plan.assignments.append((target, self.name, value))

    def plan_default(self, target: object, plan: LoadPlan) -> None:
        """Add to *plan* the steps for a record without the field."""
        if self.default is not MISSING:
            plan.assignments.append((target, self.name, copy.deepcopy(self.default)))

    def check(
        self, earlier: Mapping[str, StateField], version: int, minimum_version: int, enclosing: tuple[str, ...]
    ) -> None:
        """Refuse a declaration that does not fit its surroundings.

        Args:
            earlier: the fields before it in the same struct, by name.
            version: of the record.
            minimum_version: the oldest that is read.
            enclosing: names of the structs that it is a part of, from the outside in.

        Raises:
            ValueError: no record that is written or read has the field, or it needs one that is not there.
        """
        if self.since_version > version or self.last_version < minimum_version:
            raise ValueError(
                f"{self.what} is in versions {self.since_version} to {self.until_version or version}, "
                f"expected at least one of {minimum_version} to {version}"
            )

    def _check_declaration(self) -> None:
        if not (self.name.isidentifier() and self.name.isascii()):
            raise ValueError(f"field {self.name!r} has a bad name, expected the name of an attribute")
        if not 1 <= self.since_version <= self.last_version <= U32_MAX:
            raise ValueError(f"{self.what} is in no version: since {self.since_version}, until {self.until_version}")

    def _mismatch(self, expected: str, value: object) -> StateError:
        shown = f"{type(value).__name__} {value!r}"
        return StateError(f"{self.what} is {shown[:80]}, expected {expected}")


class CountedField(StateField):
    """A field that can have elements.

    Attributes:
        length: exact number of elements; None: it is counted.
        limit: largest number of elements if *length* does not fix it.
        length_from: name of an integer field before it in the same struct that holds the number of elements.
    """

    length: int | None
    limit: int
    length_from: str | None

    def _check_declaration(self) -> None:
        super()._check_declaration()
        if self.length is not None and not 1 <= self.length <= COUNT_MAX:
            raise ValueError(f"{self.what} cannot have length {self.length}")
        if self.length is not None and self.length_from is not None:
            raise ValueError(f"{self.what} has both length and length_from; leave one out")
        if not 0 <= self.limit <= COUNT_MAX:
            raise ValueError(f"{self.what} has limit {self.limit}, expected a count of 32 bits")

    def check(
        self, earlier: Mapping[str, StateField], version: int, minimum_version: int, enclosing: tuple[str, ...]
    ) -> None:
        """See :meth:`StateField.check`."""
        super().check(earlier, version, minimum_version, enclosing)
        if self.length_from is None:
            return
        other = earlier.get(self.length_from)
        if other is None or not other.is_integer:
            raise ValueError(
                f"{self.what} takes its length from {self.length_from!r}, expected an integer field before it"
            )
        if other.since_version > self.since_version or other.last_version < self.last_version:
            raise ValueError(
                f"{self.what} takes its length from {self.length_from!r}, expected a field of all its versions"
            )

    def _put_count(self, count: int, siblings: Mapping[str, object], writer: StateWriter) -> list[FieldDescription]:
        """Write *count*, the number of elements, unless the reader knows it otherwise."""
        known = self._known_length(siblings)
        if known is not None and count != known:
            raise StateError(f"{self.what} has {count} elements, expected {known}{self._source}")
        self._check_limit(count)
        if known is not None:
            return []
        writer.put(count.to_bytes(_COUNT_BYTES, "big"))
        return [FieldDescription(name=f"{self.name}.count", type="uint32", size=_COUNT_BYTES)]

    def _get_count(self, reader: StateReader, siblings: Mapping[str, Any]) -> int:
        known = self._known_length(siblings)
        count = reader.integer(_COUNT_BYTES, f"count of {self.what}") if known is None else known
        self._check_limit(count)
        return count

    def _known_length(self, siblings: Mapping[str, object]) -> int | None:
        if self.length_from is None:
            return self.length
        return operator.index(cast(SupportsIndex, siblings[self.length_from]))

    def _check_limit(self, count: int) -> None:
        if self.length is None and count > self.limit:
            raise StateError(f"{self.what} has {count} elements, expected at most {self.limit}{self._source}")

    @property
    def _source(self) -> str:
        return "" if self.length_from is None else f" (as field {self.length_from!r} says)"
