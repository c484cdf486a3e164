# SPDX-License-Identifier: Apache-2.0
"""The configuration of every command: each option is declared once, at a field of a structure.

The command line, the configuration file, the checks and the tables of ``docs/cli.md`` follow from these declarations.
A rule that concerns several options is a function of this file. Every number that was tuned says by what.
"""

from __future__ import annotations

import os
from typing import Annotated

import msgspec

from parmig.errors import UsageError
from parmig.options import COUNT, DURATION, PERCENT, RATE, SIZE, TEXT, check_options, option
from parmig.units import GIB, KIB, MIB, NS_PER_MS, NS_PER_S, write_duration_ns
from parmig.values import (
    AFTER_END_PROGRAM,
    AUTO,
    BEFORE_HAND_OVER_PROGRAM,
    BEFORE_PAUSE_PROGRAM,
    CANCEL,
    CPUS,
    KEYS,
    ON_TIMEOUT,
    PATH_PAIR,
    PORTS,
    RECEIVERS,
    SENDERS,
    STATE_DIR,
    SWITCHOVER,
    Path,
    check_cpus,
    check_keys,
    check_paths,
)

MAX_WORKERS = 64
"""More processes than this only cost memory: peers' figures flatten at 8 to 16 connections."""

MIN_BATCH_BYTES, MAX_BATCH_BYTES = 256 * KIB, 4 * MIB
"""Payload of one message: below it per-message cost shows, above it nothing is gained."""

WORKER_PROGRAMS = ("workers.send:main", "workers.receive:main")
"""Dotted names of the worker programs; parmig itself never imports them."""

SNAPSHOT_PROGRAMS = ("workers.save:main", "workers.restore:main")
"""The same for snapshots: the one that writes a file, the one that reads it."""

GUARDIAN_PROGRAM = "workers.guardian:main"
"""What sets the source right when the sender is killed."""

PATTERNS = ("random", "sequential", "hot", "burst")
"""Which pages a synthetic guest writes. The position is the number in device state: append only."""

TRACKERS = ("auto", "pagemap", "bitmap", "digest")
COMPARISONS = ("after", "before")
CODECS = "parmig.ram.codecs.registry:choices"
TRANSPORTS = "parmig.transport.registry:transport_choices"

DEFAULT_BATCH_BYTES = 4 * MIB
"""On loopback with 2 cores batches of 1, 2 and 4 MiB reach 926, 1088 and 1158 MiB/s with one worker: a message costs
half a millisecond of processor time on both sides together."""

SWITCHOVER_TIMEOUT_NS = 30 * NS_PER_S
"""A hundred times the usual pause: whatever takes longer hangs, and a guest should not wait for it."""


def default_workers() -> int:
    """One worker per core, at most four: one stream carries about 15 Gb/s, so four fill most NICs."""
    return max(1, min(4, os.cpu_count() or 1))


Workers = Annotated[int, option("Worker processes.", COUNT, shown="one per core, at most 4", ge=1, le=MAX_WORKERS)]

Cpus = Annotated[
    str,
    option(
        "Keep each worker to one of these processors: worker 0 to the first, worker 1 to the second, and so on, from "
        "the start again if there are more workers. Write 0-3,8.",
        CPUS,
        shown="see performance.md",
    ),
]

Announce = Annotated[
    bool,
    option(
        "Once the guest runs here, let its network devices announce their addresses again. QEMU announces them at the "
        "destination in any case."
    ),
]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a command."""

    def check(self) -> None:
        """Raise :class:`UsageError` naming the first option whose value is not allowed."""
        check_options(self)
        check_cpus(getattr(self, "cpus", ""))
        check_keys(self)


class LiveConfig(Config, frozen=True, kw_only=True):
    """Options of what reads the memory of a running guest: a migration and a snapshot."""

    workers: Workers = msgspec.field(default_factory=default_workers)
    tracker: Annotated[str, option("How parmig finds out which pages the guest writes.", choices=TRACKERS)] = "auto"
    max_bandwidth_bytes_per_s: Annotated[
        int, option("Limit for all workers together, for example 500MiB/s.", RATE, shown="no limit", ge=0)
    ] = 0
    downtime_limit_ns: Annotated[
        int, option("Pause the guest when the remaining pages can be transferred in this time.", DURATION, gt=0)
    ] = 300 * NS_PER_MS
    max_downtime_ns: Annotated[
        int,
        option(
            "If rounds stop getting smaller, pause anyway when the rest can be transferred in this time. "
            "Off: the command fails instead.",
            DURATION,
            shown="off",
            ge=0,
        ),
    ] = 0
    timeout_ns: Annotated[
        int, option("Give up if the guest cannot be paused within this time.", DURATION, shown="none", ge=0)
    ] = 0
    on_timeout: Annotated[str, ON_TIMEOUT] = CANCEL
    switchover: Annotated[str, SWITCHOVER] = AUTO
    switchover_timeout_ns: Annotated[
        int,
        option("Give up if the pause lasts longer than this; the guest then continues on this host.", DURATION, gt=0),
    ] = SWITCHOVER_TIMEOUT_NS

    def check(self) -> None:
        """Raise :class:`UsageError` naming the first option whose value is not allowed."""
        super().check()
        _check_pause_limits(self)


class SendConfig(LiveConfig, frozen=True, kw_only=True):
    """How the source migrates. The destination starts as many workers as the source."""

    transport: Annotated[
        str, option("What carries the pages; auto is tcp, and unix at unix:///PATH.", choices=TRANSPORTS)
    ] = "auto"
    paths: Annotated[
        tuple[Path, ...],
        option(
            "A pair of addresses for workers to use, with a limit for them; repeat the option for more. Write IPv6 "
            "addresses in brackets. auto: all pairs of network devices that reach each other. See paths.md.",
            PATH_PAIR,
            name="path",
            shown="the address of URI",
        ),
    ] = ()
    compress: Annotated[
        str, option("How pages are compressed. auto chooses for each batch; see performance.md.", choices=CODECS)
    ] = "none"
    zstd_level: Annotated[int, option("Level of zstd, also in delta and auto. 1 is fast.", COUNT, ge=1, le=19)] = 1
    delta_cache_bytes: Annotated[
        int, option("Copies of sent pages that all workers together keep for delta and auto.", SIZE, ge=MIB)
    ] = 256 * MIB
    batch_bytes: Annotated[
        int,
        option(
            "Guest memory in one message. Neighbouring pages may share a message four times as large.",
            SIZE,
            name="batch",
            ge=MIN_BATCH_BYTES,
            le=MAX_BATCH_BYTES,
            multiple_of=4096,
        ),
    ] = DEFAULT_BATCH_BYTES
    auto_converge: Annotated[
        bool, option("Slow the guest down in steps if it writes faster than the network carries.")
    ] = False
    throttle_initial_percent: Annotated[
        int, option("CPU time that the first step takes from the guest.", PERCENT, ge=1, le=99)
    ] = 20
    throttle_increment_percent: Annotated[
        int, option("CPU time that each further step takes in addition.", PERCENT, ge=1, le=99)
    ] = 10
    throttle_max_percent: Annotated[
        int, option("CPU time that all steps together take at most.", PERCENT, ge=1, le=99)
    ] = 99
    cpus: Cpus = ""
    connect_timeout_ns: Annotated[
        int, option("Give up if the receiver cannot be reached within this time.", DURATION, ge=0)
    ] = 3 * NS_PER_S
    reconnect_timeout_ns: Annotated[
        int, option("Give up if a lost connection cannot be made again within this time; 0: at once.", DURATION, ge=0)
    ] = 60 * NS_PER_S
    """An old spanning tree carries nothing for 50 s after a link has gone. The guest runs on meanwhile."""
    verify: Annotated[
        bool | str,
        option(
            "Compare both memories. after (also without a value): once the guest runs at the destination, with the "
            "memory that the source keeps. before: while both sides are paused, which makes the pause longer.",
            choices=COMPARISONS,
            bare=COMPARISONS[0],
            shown="off",
        ),
    ] = False
    check_only: Annotated[
        bool, option("Compare the guest, both hosts and the options, and move nothing.", name="check")
    ] = False
    quit_source: Annotated[
        bool, option("After success, end the monitor on the source instead of leaving the guest paused.")
    ] = False
    announce: Announce = False
    before_pause: Annotated[str, BEFORE_PAUSE_PROGRAM] = ""
    before_hand_over: Annotated[str, BEFORE_HAND_OVER_PROGRAM] = ""
    after_end: Annotated[str, AFTER_END_PROGRAM] = ""
    keys: Annotated[str, KEYS] = ""
    peers: Annotated[tuple[str, ...], RECEIVERS] = ()
    state_dir: Annotated[str, STATE_DIR] = ""

    @property
    def compares(self) -> str:
        """When both memories are compared: one of COMPARISONS; empty: not at all."""
        return self.verify if isinstance(self.verify, str) else COMPARISONS[0] * self.verify

    def check(self) -> None:
        """Raise :class:`UsageError` naming the first option whose value is not allowed."""
        super().check()
        check_paths(self.paths, self.workers)
        if self.throttle_initial_percent > self.throttle_max_percent:
            raise UsageError(
                f"--throttle-initial is {self.throttle_initial_percent}, more than --throttle-max "
                f"({self.throttle_max_percent}); the first step cannot exceed the maximum"
            )


class ReceiveConfig(Config, frozen=True, kw_only=True):
    """How the destination listens."""

    listen: Annotated[
        str,
        option(
            "Where to wait for the sender: tcp://ADDRESS:PORT, zmq+tcp://ADDRESS:PORT, or unix:///PATH for a sender on "
            "this host. Port 0 takes a free port, which the line 'listening on URI' shows.",
            TEXT,
            metavar="URI",
            required=True,
        ),
    ] = "zmq+tcp://127.0.0.1:4600"
    paths: Annotated[
        tuple[str, ...],
        option(
            "A local address for page data; repeat the option for more. auto: all of this host but loopback.",
            metavar="ADDR",
            name="path",
            shown="the address of --listen",
        ),
    ] = ()
    data_ports: Annotated[
        tuple[int, int], option("Ports for device state and page data, for a firewall.", PORTS, shown="any free port")
    ] = (0, 0)
    cpus: Cpus = ""
    keys: Annotated[str, KEYS] = ""
    peers: Annotated[tuple[str, ...], SENDERS] = ()
    insecure: Annotated[
        bool, option("Allow addresses other than loopback without --keys: anybody may send, unencrypted.")
    ] = False
    wait_ns: Annotated[
        int, option("Give up if no suitable sender comes within this time.", DURATION, shown="forever", ge=0)
    ] = 0
    max_state_bytes: Annotated[int, option("Accept at most this much device state.", SIZE, ge=0)] = GIB
    announce: Announce = False
    resumable: Annotated[bool, option("If this is killed, let the sender wait for --resume; see paths.md.")] = False
    resume: Annotated[
        str, option("Go on in place of a receiver that was killed; see paths.md.", metavar="SESSION", shown="off")
    ] = ""
    state_dir: Annotated[str, STATE_DIR] = ""


def _check_pause_limits(config: LiveConfig) -> None:
    """Raise :class:`UsageError` unless a pause of an allowed length can end before the switchover timeout."""
    longest_ns = max(config.downtime_limit_ns, config.max_downtime_ns)
    if config.switchover_timeout_ns <= longest_ns:
        raise UsageError(
            f"--switchover-timeout is {write_duration_ns(config.switchover_timeout_ns)}, but --downtime-limit and "
            f"--max-downtime allow a pause of {write_duration_ns(longest_ns)}; give a longer --switchover-timeout"
        )
