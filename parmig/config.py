# SPDX-License-Identifier: Apache-2.0
"""What a migration can be told: typed, checked configuration of both sides.

The defaults are the ones the command line shows. Every number that was tuned says by what.
"""

from __future__ import annotations

import os
import re

import msgspec

from parmig.errors import UsageError
from parmig.units import GIB, KIB, MIB, NS_PER_MS, NS_PER_S

MAX_WORKERS = 64
"""More processes than this only cost memory: peers' figures flatten at 8 to 16 connections."""

BATCH_BYTES_RANGE = (256 * KIB, 4 * MIB)
"""Payload of one message: below it per-message cost shows, above it nothing is gained."""

WORKER_PROGRAMS = ("workers.send:main", "workers.receive:main")
"""Dotted names of the worker programs; parmig itself never imports them."""

SNAPSHOT_PROGRAMS = ("workers.save:main", "workers.restore:main")
"""The same for snapshots: the one that writes a file, the one that reads it."""

GUARDIAN_PROGRAM = "workers.guardian:main"
"""What sets the source right when the sender is killed."""


SNAPSHOT_FORMATS = ("mapped-ram", "stream")

DEFAULT_BATCH_BYTES = 4 * MIB
"""On loopback with 2 cores batches of 1, 2 and 4 MiB reach 926, 1088 and 1158 MiB/s with one worker: a message costs
half a millisecond of processor time on both sides together."""


SWITCHOVER_TIMEOUT_NS = 30 * NS_PER_S
"""A hundred times the usual pause: whatever takes longer hangs, and a guest should not wait for it."""


def _switchover_rule(switchover_ns: int, downtime_ns: int) -> tuple[bool, str]:
    """Whether the limit of the pause leaves room for a pause that is allowed, and what to say if not."""
    return switchover_ns > downtime_ns, (
        f"the switchover timeout ({switchover_ns / NS_PER_S:g} s) must be longer than the pause that is allowed "
        f"({downtime_ns / NS_PER_S:g} s): raise --switchover-timeout"
    )


def default_workers() -> int:
    """One worker per core, at most four: one stream carries about 15 Gb/s, so four fill most NICs."""
    return max(1, min(4, os.cpu_count() or 1))


class Path(msgspec.Struct, frozen=True):
    """A pair of addresses that channels may use; ``local`` is empty where the kernel may choose."""

    remote: str
    local: str = ""

    def __str__(self) -> str:
        return f"{self.local}-{self.remote}" if self.local else self.remote


def parse_path(text: str) -> Path:
    """``LOCAL-REMOTE`` or ``REMOTE``, IPv4 addresses or names without a hyphen, IPv6 in brackets.

    Raises:
        UsageError: neither form.
    """
    parts = re.fullmatch(r"(?:(\[[0-9a-fA-F:]+\]|[^\s\-\[\]]+)-)?(\[[0-9a-fA-F:]+\]|[^\s\-\[\]]+)", text)
    if parts is None:
        raise UsageError(f"{text!r} is not a path; write LOCAL-REMOTE, like 10.0.0.1-10.0.0.2")
    return Path(local=parts[1] or "", remote=parts[2])


class SendConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the source migrates.

    Attributes:
        workers: send worker processes; the destination starts as many.
        transport: name of the data transport.
        paths: address pairs to spread workers over; empty: the address of the URI.
        compress: codec name, negotiated.
        tracker: ``auto``, ``pagemap``, ``bitmap`` or ``digest``.
        batch_bytes: guest bytes in one message.
        max_bandwidth_bytes_per_s: over all workers together; 0 is no limit.
        downtime_limit_ns: pause when what remains can be carried in this time.
        max_downtime_ns: when rounds no longer shrink, pause all the same if this suffices; 0 means
            a stall fails the migration.
        timeout_ns: of the whole migration up to the pause; 0 is none.
        switchover_timeout_ns: from the pause to hand-over, past which the guest goes on here, and the same again
            until the destination says that it runs there.
        auto_converge: slow a guest down that dirties memory faster than it is sent, in steps, until the pause.
        throttle_initial_percent: of its virtual CPUs' time that the first step takes.
        throttle_increment_percent: what each further step takes in addition.
        throttle_max_percent: what all steps together take at most.
        connect_timeout_ns: how long to try to reach the receiver.
        verify: compare a digest of all RAM on both sides while both are paused.
        quit_source: end the source VMM after success instead of leaving it paused.
    """

    workers: int = msgspec.field(default_factory=default_workers)
    transport: str = "zmq"
    paths: tuple[Path, ...] = ()
    compress: str = "none"
    tracker: str = "auto"
    batch_bytes: int = DEFAULT_BATCH_BYTES
    max_bandwidth_bytes_per_s: int = 0
    downtime_limit_ns: int = 300 * NS_PER_MS
    max_downtime_ns: int = 0
    timeout_ns: int = 0
    switchover_timeout_ns: int = SWITCHOVER_TIMEOUT_NS
    auto_converge: bool = False
    throttle_initial_percent: int = 20
    throttle_increment_percent: int = 10
    throttle_max_percent: int = 99
    connect_timeout_ns: int = 3 * NS_PER_S
    verify: bool = False
    quit_source: bool = False

    def check(self) -> None:
        """Raise :class:`UsageError` naming the first value that makes no sense."""
        low, high = BATCH_BYTES_RANGE
        rules = [
            (1 <= self.workers <= MAX_WORKERS, f"workers must be 1 to {MAX_WORKERS}, not {self.workers}"),
            (low <= self.batch_bytes <= high, f"a batch must be {low} to {high} bytes, not {self.batch_bytes}"),
            (self.batch_bytes % 4096 == 0, f"a batch must be whole pages, not {self.batch_bytes} bytes"),
            (self.max_bandwidth_bytes_per_s >= 0, "the bandwidth limit cannot be negative"),
            (self.downtime_limit_ns > 0, "the downtime limit must be more than 0"),
            (self.max_downtime_ns >= 0 and self.timeout_ns >= 0, "a time limit cannot be negative"),
            _switchover_rule(self.switchover_timeout_ns, max(self.downtime_limit_ns, self.max_downtime_ns)),
            (1 <= self.throttle_increment_percent <= 99, "a throttle's increment must be 1 to 99 percent"),
            (
                1 <= self.throttle_initial_percent <= self.throttle_max_percent <= 99,
                "a throttle must begin at 1 percent or more and end at 99 or less, "
                f"not go from {self.throttle_initial_percent} to {self.throttle_max_percent}",
            ),
        ]
        for holds, message in rules:
            if not holds:
                raise UsageError(message)


class SaveConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a guest is saved to a file.

    Attributes:
        workers: processes that write.
        format: ``mapped-ram``, pages at fixed places, or ``stream``, sequential; both are QEMU's.
        tracker: as of SendConfig.
        max_bandwidth_bytes_per_s: of pages to the file, over all workers together; 0 is no limit.
        downtime_limit_ns: pause when what remains can be written in this time.
        max_downtime_ns, timeout_ns: as of SendConfig.
        switchover_timeout_ns: from the pause until the guest goes on, past which it does so without a snapshot.
        replace: whether a file of that name may be replaced.
    """

    workers: int = msgspec.field(default_factory=default_workers)
    format: str = "mapped-ram"
    tracker: str = "auto"
    max_bandwidth_bytes_per_s: int = 0
    downtime_limit_ns: int = 300 * NS_PER_MS
    max_downtime_ns: int = 0
    timeout_ns: int = 0
    switchover_timeout_ns: int = SWITCHOVER_TIMEOUT_NS
    replace: bool = False

    def check(self) -> None:
        """Raise :class:`UsageError` naming the first value that makes no sense."""
        rules = [
            (1 <= self.workers <= MAX_WORKERS, f"workers must be 1 to {MAX_WORKERS}, not {self.workers}"),
            (
                self.format in SNAPSHOT_FORMATS,
                f"unknown format {self.format!r}; known are {', '.join(SNAPSHOT_FORMATS)}",
            ),
            (self.max_bandwidth_bytes_per_s >= 0, "the bandwidth limit cannot be negative"),
            (self.downtime_limit_ns > 0, "the downtime limit must be more than 0"),
            (self.max_downtime_ns >= 0 and self.timeout_ns >= 0, "a time limit cannot be negative"),
            _switchover_rule(self.switchover_timeout_ns, max(self.downtime_limit_ns, self.max_downtime_ns)),
        ]
        for holds, message in rules:
            if not holds:
                raise UsageError(message)


class RestoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a guest is restored from a file.

    Attributes:
        workers: processes that read.
        paused: leave the guest paused, whatever it was when it was saved.
    """

    workers: int = msgspec.field(default_factory=default_workers)
    paused: bool = False

    def check(self) -> None:
        """Raise :class:`UsageError` naming the first value that makes no sense."""
        if not 1 <= self.workers <= MAX_WORKERS:
            raise UsageError(f"workers must be 1 to {MAX_WORKERS}, not {self.workers}")


class ReceiveConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the destination listens.

    Attributes:
        listen: URI of the control channel, ``zmq+tcp://ADDRESS:PORT`` or ``tcp://``; port 0 takes a free one.
        paths: local addresses for the data channels; empty: the listen address.
        data_ports: first and last port for state and data channels; (0, 0) takes free ones.
        insecure: listen on addresses other than loopback without keys.
        wait_ns: how long to wait for a sender; 0 is for ever.
        max_state_bytes: of device state that is taken; a source with more fails.
    """

    listen: str = "zmq+tcp://127.0.0.1:4600"
    paths: tuple[str, ...] = ()
    data_ports: tuple[int, int] = (0, 0)
    insecure: bool = False
    wait_ns: int = 0
    max_state_bytes: int = GIB
