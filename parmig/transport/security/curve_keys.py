# SPDX-License-Identifier: Apache-2.0
"""Keys of ZeroMQ's CURVE, which encrypts the data channels of one session.

Both ends derive them from the secret of the session, which has crossed nothing but the control channel, encrypted by
TLS between hosts that know each other's certificates. So nothing of CURVE is on a disk or in a message, a key is worth
nothing in another session, and a process that takes the place of another one has the same keys. CURVE adds keys of its
own to each connection: whoever learns the secret later can still not read what was recorded.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple


class CurveKeys(NamedTuple):
    """What one end of a channel needs, 32 bytes each.

    Attributes:
        public, secret: its own pair.
        peer: the public key of the other end; nobody else is let in, or spoken to.
    """

    public: bytes
    secret: bytes
    peer: bytes

    def __repr__(self) -> str:
        return f"CurveKeys(public={self.public.hex()}, peer={self.peer.hex()})"


def has_curve() -> bool:
    """Whether the libzmq of this host has CURVE."""
    import zmq  # takes 20 ms to import, and only a user who wants both keys and ZeroMQ needs it here

    return bool(zmq.has("curve"))


def listener_keys(session: bytes, worker: int) -> CurveKeys:
    """The keys of the listening end of the channel of *worker*. :func:`has_curve` must be true."""
    return _keys(session, worker, b"listener", b"caller")


def caller_keys(session: bytes, worker: int) -> CurveKeys:
    """The keys of the connecting end of the channel of *worker*. :func:`has_curve` must be true."""
    return _keys(session, worker, b"caller", b"listener")


def _keys(session: bytes, worker: int, own: bytes, other: bytes) -> CurveKeys:
    secret = _secret(session, worker, own)
    return CurveKeys(_public(secret), secret, _public(_secret(session, worker, other)))


def _secret(session: bytes, worker: int, side: bytes) -> bytes:
    """A secret key of Curve25519: any 32 bytes are one."""
    return hmac.digest(session, b"parmig curve key 1 " + side + worker.to_bytes(2, "big"), hashlib.sha256)


def _public(secret: bytes) -> bytes:
    import zmq
    from zmq.utils import z85

    return z85.decode(zmq.curve_public(z85.encode(secret)))
