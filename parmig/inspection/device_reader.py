# SPDX-License-Identifier: Apache-2.0
"""The device part of a stream: sections without a length, taken apart by the description at the end."""

from __future__ import annotations

from typing import Any

from parmig.errors import StreamError, StreamSectionError
from parmig.inspection.inspection_report import DeviceInspection
from parmig.stream import vmdescription
from parmig.stream.data_file import MigrationDataFile
from parmig.stream.sections import SectionHead
from parmig.units import MIB

MAX_SECTION_BYTES = 1 << 40
"""The limit of one device's state. No device has more, and positions in the stream must stay below 2^63."""
MAX_DECODED_BYTES = 16 * MIB
"""At most this much state of all devices together is decoded; a guest with 255 CPUs has about 2 MiB."""
MAX_DECODED_VALUES = 1 << 18
"""At most this many values of all devices together are decoded, some 100 bytes each; a guest with 255 CPUs has about
110,000."""
FAILURE_VALUES = MAX_DECODED_VALUES // 32
"""How many values a device counts for if its bytes are not as described: the attempt took time, too."""


class DeviceReader:
    """Reads the sections of devices, by their description.

    Args:
        description: of the stream.
        notes: gets a line for each device that is described but cannot be decoded.
    """

    def __init__(self, description: vmdescription.VmDescription, notes: list[str]) -> None:
        self._described = {(device.name, device.instance_id): device for device in description.devices}
        self._notes = notes
        self._left_bytes = MAX_DECODED_BYTES
        self._left_values = MAX_DECODED_VALUES

    @property
    def left(self) -> list[str]:
        """Names of devices that are described but have not come."""
        return [name for name, _ in self._described]

    def read(self, data: MigrationDataFile, head: SectionHead) -> DeviceInspection:
        """The body of the section *head*; its footer comes next.

        Raises:
            StreamSectionError: nothing describes it.
            StreamTooLongError: it is described as having over 1 TiB.
            StreamTruncatedError: the stream ends before it does.
        """
        description = self._described.pop((head.idstr, head.instance_id), None)
        if description is None:
            raise data.error(
                StreamSectionError,
                f"the description has no device {head.idstr!r} (instance {head.instance_id}), so its length is unknown",
                head.offset_bytes,
            )
        size_bytes = vmdescription.device_bytes(description)
        data.check_length(size_bytes, MAX_SECTION_BYTES, f"device {head.idstr!r}")
        device = DeviceInspection(
            idstr=head.idstr, instance_id=head.instance_id, version=head.version_id, bytes=size_bytes
        )
        if size_bytes > min(self._left_bytes, vmdescription.MAX_DEVICE_BYTES) or self._left_values <= 0:
            data.skip(size_bytes)
            self._notes.append(f"device {head.idstr!r} is not decoded: so much state is more than a guest has")
            return device
        content = data.get_buffer(size_bytes, vmdescription.MAX_DEVICE_BYTES)
        self._left_bytes -= size_bytes
        device.fields = self._decode(description, content)
        return device

    def _decode(self, description: vmdescription.DeviceDescription, content: bytes) -> dict[str, Any] | None:
        try:
            values = vmdescription.decode(description, content)
        except StreamError as error:
            self._left_values -= FAILURE_VALUES
            self._notes.append(str(error))
            return None
        return {name: self._plain(value) for name, value in values.items()}

    def _plain(self, value: Any) -> Any:
        """*value* as JSON can have it: bytes in hexadecimal."""
        self._left_values -= 1
        if isinstance(value, bytes):
            return value.hex()
        if isinstance(value, dict):
            return {name: self._plain(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        return value
