# SPDX-License-Identifier: Apache-2.0
"""Device state by declared, typed, versioned fields, as the rust-vmm proposal asks for.

``docs/state.md`` shows how to declare a device.
"""

from parmig.state.arrays import MigrationStateArray
from parmig.state.declare import migration_state, migration_struct, state_of
from parmig.state.device import MigrationState, migration_state_pop, migration_state_push
from parmig.state.fields import (
    FIELD_TYPE_BOOL,
    FIELD_TYPE_BUFFER,
    FIELD_TYPE_BYTE,
    FIELD_TYPE_U16,
    FIELD_TYPE_U32,
    FIELD_TYPE_U64,
    FieldType,
    FieldValue,
    MigrationStateField,
)
from parmig.state.live import LiveHandlers, LiveState
from parmig.state.markers import (
    NOT_MIGRATED,
    U16,
    U32,
    U64,
    Bool,
    BoolArray,
    Buffer,
    Byte,
    ByteArray,
    Length,
    Limit,
    Since,
    Subsection,
    U16Array,
    U32Array,
    U64Array,
    Until,
)
from parmig.state.nested import MigrationStateStructArray, MigrationStateStructField
from parmig.state.state_field import MISSING
from parmig.state.state_registry import StateRegistry
from parmig.state.state_saver import StateSaver
from parmig.state.structs import MigrationStateStruct, MigrationStateSubsection

__all__ = [
    "FIELD_TYPE_BOOL",
    "FIELD_TYPE_BUFFER",
    "FIELD_TYPE_BYTE",
    "FIELD_TYPE_U16",
    "FIELD_TYPE_U32",
    "FIELD_TYPE_U64",
    "MISSING",
    "NOT_MIGRATED",
    "U16",
    "U32",
    "U64",
    "Bool",
    "BoolArray",
    "Buffer",
    "Byte",
    "ByteArray",
    "FieldType",
    "FieldValue",
    "Length",
    "Limit",
    "LiveHandlers",
    "LiveState",
    "MigrationState",
    "MigrationStateArray",
    "MigrationStateField",
    "MigrationStateStruct",
    "MigrationStateStructArray",
    "MigrationStateStructField",
    "MigrationStateSubsection",
    "Since",
    "StateRegistry",
    "StateSaver",
    "Subsection",
    "U16Array",
    "U32Array",
    "U64Array",
    "Until",
    "migration_state",
    "migration_state_pop",
    "migration_state_push",
    "migration_struct",
    "state_of",
]
