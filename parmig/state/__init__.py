# SPDX-License-Identifier: Apache-2.0
"""Device state by declared, typed, versioned fields, as the rust-vmm proposal asks for."""

from parmig.state.fields import (
    FIELD_TYPE_BOOL,
    FIELD_TYPE_BUFFER,
    FIELD_TYPE_BYTE,
    FIELD_TYPE_U16,
    FIELD_TYPE_U32,
    FIELD_TYPE_U64,
    FieldType,
    FieldValue,
    MigrationStateArray,
    MigrationStateField,
)
from parmig.state.registry import MigrationState, StateRegistry, migration_state_pop, migration_state_push

__all__ = [
    "FIELD_TYPE_BOOL",
    "FIELD_TYPE_BUFFER",
    "FIELD_TYPE_BYTE",
    "FIELD_TYPE_U16",
    "FIELD_TYPE_U32",
    "FIELD_TYPE_U64",
    "FieldType",
    "FieldValue",
    "MigrationState",
    "MigrationStateArray",
    "MigrationStateField",
    "StateRegistry",
    "migration_state_pop",
    "migration_state_push",
]
