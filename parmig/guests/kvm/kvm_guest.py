# SPDX-License-Identifier: Apache-2.0
"""The engine's view of a KVM guest."""

from __future__ import annotations

import os
import stat

import msgspec

from parmig.errors import GuestRefusedError
from parmig.guests.kvm.kvm_monitor import KvmStats
from parmig.guests.kvm.options import KvmOptions, parse_options
from parmig.guests.kvm.ram import BLOCK_NAME, ram_block
from parmig.guests.spawned import monitor_messages as m
from parmig.guests.spawned.spawned_guest import SpawnedGuest
from parmig.linux import trusted_files
from parmig.units import KIB, MIB

_PROGRAM = "parmig.guests.kvm.kvm_monitor:main"
_STATE_LIMIT_BYTES = 1 * MIB  # of the machine's devices
_STATE_LIMIT_BYTES_PER_VCPU = 64 * KIB


class KvmGuest(SpawnedGuest):
    """A virtual machine in a process of its own.

    Args:
        options: what machine to make.
        incoming: True: memory is empty, and the guest cannot run before its state is loaded.

    Raises:
        HostRefusedError: this host has no KVM, or lacks something that the options need.
        GuestRefusedError: a file that the options name cannot be used.
        GuestError: the process could not be started or did not come up.
    """

    def __init__(self, options: KvmOptions, *, incoming: bool = False) -> None:
        self._options = options
        self.adopts_memory = not options.file  # the user wants that file to be used
        super().__init__(
            "kvm",
            _PROGRAM,
            options,
            [ram_block(options.memory_bytes)],
            state_limit_bytes=_STATE_LIMIT_BYTES + options.vcpus * _STATE_LIMIT_BYTES_PER_VCPU,
            incoming=incoming,
            running=options.running,
            head_start_ns=options.head_start_ns,
        )

    def _create_file(self, name: str, size_bytes: int) -> int:
        """A memory file. For guest memory, the file that the options name, which must be new or of the right size."""
        path = self._options.file
        if name != BLOCK_NAME or not path:
            return super()._create_file(name, size_bytes)
        try:
            fd = trusted_files.open_file(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise GuestRefusedError(f"memory file {path} cannot be opened: {error.strerror}") from error
        self._fds.append(fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size not in (0, size_bytes):
            raise GuestRefusedError(
                f"memory file {path} has {status.st_size} bytes, expected none or {size_bytes}; name another file"
            )
        os.ftruncate(fd, size_bytes)
        return fd

    def stats(self) -> KvmStats:
        """The counters as they are now."""
        return msgspec.msgpack.decode(self._ask(m.Ask(), m.Answer).stats, type=KvmStats)


def open_kvm(options: str, *, incoming: bool) -> KvmGuest:
    """The guest that ``kvm:OPTIONS`` names; it owns a process until close().

    Raises:
        UsageError: bad options.
        HostRefusedError, GuestRefusedError, GuestError: as for KvmGuest.
    """
    return KvmGuest(parse_options(options), incoming=incoming)
