# SPDX-License-Identifier: Apache-2.0
"""Keys of ZeroMQ's CURVE, which encrypts one data channel of one session.

Both ends make a pair of keys for each channel of each session, and tell each other the public ones over the control
channel, which TLS has authenticated. So no CURVE key is ever on a disk, and a key of one session is worth nothing in
the next one.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

KEY_BYTES = 32

CurveKey = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
"""One key of Curve25519."""


class KeyPair(NamedTuple):
    """A pair of keys that was made for one channel."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.hex()})"


class CurveKeys(msgspec.Struct, frozen=True):
    """What one end of a channel needs.

    Attributes:
        public, secret: its own pair.
        peer: the public key of the other end; nobody else is let in, or spoken to.
    """

    public: CurveKey
    secret: CurveKey
    peer: CurveKey

    def __repr__(self) -> str:
        return f"CurveKeys(public={self.public.hex()}, peer={self.peer.hex()})"


def has_curve() -> bool:
    """Whether the libzmq of this host has CURVE."""
    import zmq  # takes 20 ms to import; only those who send pages by ZeroMQ need it

    return bool(zmq.has("curve"))


def make_key_pair() -> KeyPair:
    """A new pair. :func:`has_curve` must be true."""
    import zmq
    from zmq.utils import z85

    public, secret = zmq.curve_keypair()
    return KeyPair(z85.decode(public), z85.decode(secret))
