# SPDX-License-Identifier: Apache-2.0
"""The synthetic guest as the engine sees it."""

from __future__ import annotations

import msgspec

from parmig.guests.spawned import monitor_messages as m
from parmig.guests.spawned.spawned_guest import SpawnedGuest
from parmig.guests.synthetic.options import SyntheticOptions, block_layout, parse_options
from parmig.guests.synthetic.synthetic_monitor import Punch, SyntheticStats
from parmig.ram.blocks import PAGE_BYTES
from parmig.units import MIB

_PROGRAM = "parmig.guests.synthetic.synthetic_monitor:main"
_STATE_LIMIT_BYTES = 16 * MIB  # of all but the ledgers, which take 4 bytes a page


class SyntheticGuest(SpawnedGuest):
    """A guest process with memory, a writer and devices.

    Args:
        options: what guest to make.
        incoming: True: memory is empty, and the guest cannot run before its state is loaded.

    Raises:
        GuestError: the process could not be started or did not come up.
    """

    def __init__(self, options: SyntheticOptions, *, incoming: bool = False) -> None:
        self.options = options
        super().__init__(
            "synthetic",
            _PROGRAM,
            options,
            block_layout(options),
            state_limit_bytes=_STATE_LIMIT_BYTES + options.memory_bytes // PAGE_BYTES * 4,
            incoming=incoming,
            running=options.running,
            head_start_ns=options.head_start_ns,
        )

    # -- for tests and the demonstration --------------------------------------------------------

    def punch(self, block: str, first_page: int, pages: int) -> None:
        """Give *pages* pages of *block* back to the host, as a balloon does; they read as zero.

        Raises:
            GuestError: no such block or pages, or pages of the ring device.
        """
        body = msgspec.msgpack.encode(Punch(block, first_page, pages))
        self._ask(m.Special(body), m.Done, self._slow_limit_s)

    def stats(self) -> SyntheticStats:
        """The counters as they are now."""
        return msgspec.msgpack.decode(self._ask(m.Ask(), m.Answer).stats, type=SyntheticStats)


def open_synthetic(options: str, *, incoming: bool) -> SyntheticGuest:
    """The guest that ``synthetic:OPTIONS`` names; it owns a process until close().

    Raises:
        UsageError: bad options.
        GuestError: the process did not come up.
    """
    return SyntheticGuest(parse_options(options), incoming=incoming)
