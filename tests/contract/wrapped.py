# SPDX-License-Identifier: Apache-2.0
"""A transport that wraps another one, as CONTRIBUTING describes: it adds a checksum to the head of each message."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from parmig.transport.registry import TransportKind, open_transport
from parmig.transport.transport import Buffer, Endpoint, Incoming, MigrationTransport

KIND = TransportKind("sum+tcp", "sum", "tests.contract.wrapped:SummedTransport")
SUM_BYTES = 4


class Summed(Incoming):
    """A message without its checksum; the payload stays where it is."""

    def __init__(self, inner: Incoming) -> None:
        super().__init__([inner.head[SUM_BYTES:]])
        self.frame_count, self.payload_bytes, self.places = inner.frame_count, inner.payload_bytes, inner.places
        self.into, self.frames = inner.into, inner.frames  # type: ignore[method-assign]


class SummedTransport(MigrationTransport):
    """Messages over tcp; one whose head does not fit its checksum is dropped."""

    def __init__(self, name: str, *, max_message_bytes: int, **options: Any) -> None:
        super().__init__(name, max_message_bytes=max_message_bytes, **options)
        self._inner = open_transport(
            Endpoint("tcp", "", 0), name, max_message_bytes=max_message_bytes + SUM_BYTES, **options
        )

    def bind(self, endpoint: Endpoint) -> Endpoint:
        return self._inner.bind(endpoint)

    def connect(self, endpoint: Endpoint, *, local: str = "", timeout_ns: int) -> None:
        self._inner.connect(endpoint, local=local, timeout_ns=timeout_ns)

    def write(self, frames: Sequence[Buffer], *, kept: bool = False) -> None:
        head = zlib.crc32(frames[0]).to_bytes(SUM_BYTES, "big") + bytes(frames[0])
        self._inner.write([head, *frames[1:]], kept=kept)

    def receive(self, timeout_ms: int = 0) -> Incoming | None:
        return self._check(self._inner.receive(timeout_ms))

    def read(self, timeout_ms: int = 0) -> list[memoryview] | None:
        frames = self._inner.read(timeout_ms)
        checked = None if frames is None else self._check(Incoming(frames))
        return None if checked is None else [checked.head, *checked.frames()]

    def _check(self, inner: Incoming | None) -> Incoming | None:
        if inner is None or int.from_bytes(inner.head[:SUM_BYTES], "big") != zlib.crc32(inner.head[SUM_BYTES:]):
            return None
        return Summed(inner)

    @property
    def challenge(self) -> bytes:
        return self._inner.challenge

    def accept(self) -> None:
        self._inner.accept()

    def pollables(self) -> list[int]:
        return self._inner.pollables()

    def ready(self) -> bool:
        return self._inner.ready()

    def shutdown(self, linger_ms: int = 0) -> None:
        self._inner.shutdown(linger_ms)
