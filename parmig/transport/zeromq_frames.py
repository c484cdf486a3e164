# SPDX-License-Identifier: Apache-2.0
"""Frames that libzmq reads where they lie, without telling when it has.

pyzmq's own send without a copy has libzmq report every frame that has left, by an inner socket, to a thread that then
drops its reference: two wake-ups for each batch, and a thread that wants the interpreter's lock just when the next is
being made. A channel with acknowledgements does not need that report. libzmq has messages for it, those made by
``zmq_msg_init_data`` without a function to free them; pyzmq does not offer them, so they are made here. Without that
thread a worker sent 4 and 8 % more (medians of 8, loopback, 2 cores).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import zmq
from zmq.backend import cython

_MSG_BYTES = 64  # zmq_msg_t, zmq.h


def _functions() -> tuple[Any, Any] | None:
    """The functions of libzmq, of the very library that pyzmq uses; None where it does not show them."""
    try:
        library = ctypes.CDLL(cython._zmq.__file__, use_errno=True)  # what it was linked with is searched too
        make, send = library.zmq_msg_init_data, library.zmq_msg_send
    except (AttributeError, OSError):
        return None
    make.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
    send.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    return make, send


FUNCTIONS = _functions()


def send_in_place(sock: zmq.Socket[bytes], frame: memoryview, flags: int) -> None:
    """Queue *frame*, which stays unchanged and mapped until the peer is known to have it.

    Raises:
        zmq.ZMQError: as ``Socket.send``.
    """
    if FUNCTIONS is None:
        sock.send(frame, flags, copy=False)
        return
    make, send = FUNCTIONS
    message = ctypes.create_string_buffer(_MSG_BYTES)
    make(message, np.frombuffer(frame, dtype=np.uint8).ctypes.data, len(frame), None, None)
    if send(message, sock.underlying, flags) < 0:  # nothing to close: the message owns nothing
        raise zmq.ZMQError(ctypes.get_errno())
