# SPDX-License-Identifier: Apache-2.0
"""What the fork server and its owner say to each other over a pair of sockets.

A request is a head with the descriptors, and then the body. The answer is a process id, or the negative number of an
error. The exit code follows later, over a pipe of its own.
"""

from __future__ import annotations

import signal
import struct

import msgspec

HEAD = struct.Struct("=Q")
"""The length of the body in bytes. It carries the descriptors: the pipe for the exit code, the process's end of its
pipe to the owner, then those that the process gets."""

ANSWER = struct.Struct("=q")
EXIT_CODE = struct.Struct("=i")

MOST_FDS = 253
"""SCM_MAX_FD: as many descriptors as the kernel passes at once."""

GROUP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""They end a whole process group. The fork server blocks them."""


class Request(msgspec.Struct, frozen=True):
    """The body of a request.

    Attributes:
        program: what to run, ``module:function``.
        name: the name of the process in process lists.
        setup: given to the program as it is.
        fds: for each descriptor of the program, whether one was passed; otherwise the program gets -1.
        imports: modules to import before the fork.
    """

    program: str
    name: str
    setup: bytes
    fds: tuple[bool, ...]
    imports: tuple[str, ...]
