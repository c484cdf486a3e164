# SPDX-License-Identifier: Apache-2.0
"""What ``parmig inspect --json`` prints. Names may be added, never renamed; ``docs/report.md`` explains each."""

from __future__ import annotations

from typing import Any

import msgspec


class InspectionError(msgspec.Struct, kw_only=True):
    """Why the stream is described no further."""

    type: str
    message: str
    offset_bytes: int | None = None


class SectionInspection(msgspec.Struct, kw_only=True):
    """A section, or all sections of one number: START, PARTs and END."""

    kind: str
    section_id: int
    idstr: str
    instance_id: int
    version: int
    offset_bytes: int
    parts: int = 0
    bytes: int | None = None


class BlockInspection(msgspec.Struct, kw_only=True):
    """A block of memory and its pages in the stream; null if the stream does not contain the value."""

    name: str
    bytes: int
    gpa: int | None = None
    page_size_bytes: int | None = None
    pages_normal: int | None = 0
    pages_zero: int | None = 0
    pages_xbzrle: int | None = 0
    pages_compressed: int | None = 0
    pages_distinct: int | None = 0
    bitmap_offset_bytes: int | None = None
    pages_offset_bytes: int | None = None


class DeviceInspection(msgspec.Struct, kw_only=True):
    """A device's section, with its values where the stream describes them."""

    idstr: str
    instance_id: int
    version: int
    bytes: int | None = None
    fields: dict[str, Any] | None = None


class TrailerInspection(msgspec.Struct, kw_only=True):
    """The trailer of a snapshot that parmig wrote."""

    parmig: str
    guest: str
    body_bytes: int
    digest: str


class Inspection(msgspec.Struct, kw_only=True):
    """The whole description of a stream."""

    file: str
    format: str | None = None
    version: int | None = None
    machine: str | None = None
    uuid: str | None = None
    capabilities: list[str] = []
    complete: bool = False
    error: InspectionError | None = None
    sections: list[SectionInspection] = []
    commands: dict[str, int] = {}
    blocks: list[BlockInspection] = []
    devices: list[DeviceInspection] = []
    device_state_bytes: int = 0
    vmdescription_bytes: int = 0
    trailing_bytes: int = 0
    trailer: TrailerInspection | None = None
    total_bytes: int = 0
    allocated_bytes: int | None = None
    notes: list[str] = []
