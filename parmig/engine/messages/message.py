# SPDX-License-Identifier: Apache-2.0
"""What all messages between the processes of a migration share: msgpack of tagged, typed structures.

Decoding checks every type; nothing is ever unpickled.
"""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Root of all messages: tagged with the class name."""


encode = msgspec.msgpack.Encoder().encode
