# SPDX-License-Identifier: Apache-2.0
"""What annotations of a declared class are made of: types of fields, and remarks on them.

``U64`` and the like are field types. ``list[U16]`` is an array that is a list, ``U16Array`` one that is a numpy array,
``list[Queue]`` an array of structs. Remarks go into ``Annotated``, as in ``Annotated[list[U16], Length(8), Since(2)]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from parmig.state.fields import (
    FIELD_TYPE_BOOL,
    FIELD_TYPE_BUFFER,
    FIELD_TYPE_BYTE,
    FIELD_TYPE_U16,
    FIELD_TYPE_U32,
    FIELD_TYPE_U64,
    FieldType,
)


@dataclass(frozen=True)
class ArrayOf:
    """The attribute is a numpy array of this type; used by ``U16Array`` and the like."""

    field_type: FieldType


@dataclass(frozen=True)
class Length:
    """How many elements an array has, or bytes a Buffer; without it they are counted.

    Attributes:
        elements: their exact number, or the name of an integer attribute before it that holds the number.
    """

    elements: int | str


@dataclass(frozen=True)
class Limit:
    """The most elements, or bytes."""

    elements: int


@dataclass(frozen=True)
class Since:
    """The version that brought the attribute: of the device, or of the subsection that it is in."""

    version: int


@dataclass(frozen=True)
class Until:
    """The last version that has the attribute; it is still read, for ``post_load`` to convert, but not written."""

    version: int


@dataclass(frozen=True, eq=False)
class Subsection:
    """The attributes marked with this object are written together, and only if *needed*.

    A destination that does not know the subsection refuses it, but loads everything that was saved without it.

    Attributes:
        name: of the part, without the device's name.
        needed: called with the object; whether the fields are to be written.
        version: of the subsection's own layout.
        minimum_version: the oldest one that can still be loaded.
        pre_save: called with the object before they are read.
        post_load: called with the object and the version after they were set.
    """

    name: str
    needed: Callable[[Any], bool]
    version: int = 1
    minimum_version: int = 1
    pre_save: Callable[[Any], object] | None = None
    post_load: Callable[[Any, int], object] | None = None


class NotMigrated:
    """The type of NOT_MIGRATED."""


NOT_MIGRATED = NotMigrated()
"""The attribute belongs to this host: descriptors, mappings, caches. All others must be fields."""

Byte: TypeAlias = Annotated[int, FIELD_TYPE_BYTE]
Bool: TypeAlias = Annotated[bool, FIELD_TYPE_BOOL]
U16: TypeAlias = Annotated[int, FIELD_TYPE_U16]
U32: TypeAlias = Annotated[int, FIELD_TYPE_U32]
U64: TypeAlias = Annotated[int, FIELD_TYPE_U64]
Buffer: TypeAlias = Annotated[bytes, FIELD_TYPE_BUFFER]
ByteArray: TypeAlias = Annotated[npt.NDArray[np.uint8], ArrayOf(FIELD_TYPE_BYTE)]
BoolArray: TypeAlias = Annotated[npt.NDArray[np.bool_], ArrayOf(FIELD_TYPE_BOOL)]
U16Array: TypeAlias = Annotated[npt.NDArray[np.uint16], ArrayOf(FIELD_TYPE_U16)]
U32Array: TypeAlias = Annotated[npt.NDArray[np.uint32], ArrayOf(FIELD_TYPE_U32)]
U64Array: TypeAlias = Annotated[npt.NDArray[np.uint64], ArrayOf(FIELD_TYPE_U64)]
