# SPDX-License-Identifier: Apache-2.0
"""A whole migration inside one process tree: two guests, a receiver in a thread, a sender.

It owns both guests and compares their memories. It knows no arguments and prints nothing.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack
from tempfile import TemporaryDirectory

import psutil
from msgspec.structs import replace

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.demo.arrival import check_arrived
from parmig.engine.demo.demo_config import DemoConfig
from parmig.engine.destination.receiver import MigrationReceiver
from parmig.engine.reporting.report import ErrorReport, Progress, Report
from parmig.engine.source.sender import MigrationSender
from parmig.errors import CancelledError, HostRefusedError, LimitExceededError, ParmigError, UsageError
from parmig.guests.guest import Guest
from parmig.guests.registry import open_guest
from parmig.ram.traces.trace_file import read_header
from parmig.units import NS_PER_S, format_size

LISTEN_LIMIT_S = 20.0
"""How long the receiver may take to prepare its guest and listen. A QEMU under emulation needs a few seconds."""

RECEIVER_END_LIMIT_S = 30.0
"""How long the receiver may take to end after the sender. It ends at once, unless it waits for a limit of its own."""


class Demo:
    """One demonstration.

    Args:
        config: what to show.
        sending: how to migrate.
        progress: called with the progress of the source, from the thread that calls run().

    Attributes:
        checked: after run(): whether the guest checked itself at the destination and is right.
    """

    def __init__(
        self, config: DemoConfig, sending: SendConfig, *, progress: Callable[[Progress], None] | None = None
    ) -> None:
        self._config = config
        self._sending = sending
        self._progress = progress
        self.checked = False
        self._cancelled = False
        self._cancel_side: Callable[[], None] | None = None

    def cancel(self) -> None:
        """End it in order; safe from a signal handler and from another thread."""
        self._cancelled = True
        if self._cancel_side is not None:
            self._cancel_side()

    def run(self) -> Report:
        """Start both guests, migrate, compare, check.

        Returns:
            the source's report; an error of the destination or of the check is put into it.

        Raises:
            UsageError: the configuration makes no sense.
            HostRefusedError: this host lacks what the demo needs.
            GuestError: a guest could not be started.
            CancelledError: cancelled before the migration began.
        """
        self._config.check()
        self._sending.check()
        require_memory(self._memory_bytes())
        with ExitStack() as stack:
            source_text, destination_text = self._guests(stack)
            source = stack.enter_context(open_guest(source_text, incoming=False))
            destination = stack.enter_context(open_guest(destination_text, incoming=True))
            records = stack.enter_context(TemporaryDirectory(prefix="parmig-demo-"))  # of no interest afterwards
            report, arrived = self._migrate(source, destination, records)
            _merge(report, arrived)
            self.checked = check_arrived(destination, report)
            return report

    def _memory_bytes(self) -> int:
        if not self._config.trace:
            return self._config.memory_bytes
        header = read_header(self._config.trace)
        return header.memory_pages * header.page_size_bytes

    def _guests(self, stack: ExitStack) -> tuple[str, str]:
        """What to open as the source and as the destination; *stack* ends what was started for it."""
        config = self._config
        if config.guest == "qemu":
            from parmig.engine.demo.demo_qemu import qemu_pair

            return stack.enter_context(qemu_pair(config.memory_bytes, kernel=config.kernel, initrd=config.initrd))
        if config.guest == "kvm":
            machine = f"kvm:memory={config.memory_bytes},vcpus={config.vcpus}"
            return f"{machine},program={_kvm_program(config.pattern)},rate={config.dirty_rate_bytes_per_s}", machine
        if config.trace:
            machine = f"synthetic:trace={config.trace}"
            return machine, machine
        memory = f"synthetic:memory={config.memory_bytes}"
        return f"{memory},rate={config.dirty_rate_bytes_per_s},pattern={config.pattern}", memory

    def _migrate(self, source: Guest, destination: Guest, records: str) -> tuple[Report, Report]:
        receiving = _Receiving(destination, records)
        self._cancel_side = receiving.cancel
        self._raise_if_cancelled()
        with receiving:
            sender = MigrationSender(
                source, receiving.uri(), replace(self._sending, state_dir=records), progress=self._progress
            )
            self._cancel_side = sender.cancel  # and only that: the receiver hears of it from the sender
            self._raise_if_cancelled()
            report = sender.start()
            if report.error is not None:
                receiving.cancel()
            return report, receiving.report()

    def _raise_if_cancelled(self) -> None:
        if self._cancelled:
            raise CancelledError("cancelled before the migration began")


class _Receiving:
    """The destination's side, in a thread, from entering until leaving.

    Args:
        guest: takes the migration; not owned.
        records: directory for the record of the hand-over.
    """

    def __init__(self, guest: Guest, records: str) -> None:
        self._uris: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._report: Report | None = None
        self._error: BaseException | None = None
        config = ReceiveConfig(listen="zmq+tcp://127.0.0.1:0", wait_ns=60 * NS_PER_S, state_dir=records)
        self._receiver = MigrationReceiver(guest, config, listening=self._uris.put)
        self.cancel: Callable[[], None] = self._receiver.cancel
        self._thread = threading.Thread(target=self._run, name="demo-receiver", daemon=True)

    def _run(self) -> None:
        try:
            self._report = self._receiver.receive_loop()
        except BaseException as error:
            self._error = error
        finally:
            self._uris.put(None)

    def __enter__(self) -> _Receiving:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.cancel()
            self._thread.join(RECEIVER_END_LIMIT_S)

    def uri(self) -> str:
        """Where the receiver listens.

        Raises:
            ParmigError: it ended instead, with its own error, or took too long.
        """
        try:
            uri = self._uris.get(timeout=LISTEN_LIMIT_S)
        except queue.Empty:
            raise LimitExceededError(f"the receiver did not listen within {LISTEN_LIMIT_S:.0f} s") from None
        if uri is None:
            self.report().raise_for_status()
            raise ParmigError("the receiver ended before it listened, without a reason")
        return uri

    def report(self) -> Report:
        """The destination's report, once its side has ended.

        Raises:
            LimitExceededError: it did not end.
        """
        self._thread.join(RECEIVER_END_LIMIT_S)
        if self._error is not None:
            raise self._error
        if self._report is None:
            raise LimitExceededError(f"the receiver did not end within {RECEIVER_END_LIMIT_S:.0f} s")
        return self._report


def _kvm_program(pattern: str) -> str:
    """The program of a KVM guest that writes in *pattern*.

    Raises:
        UsageError: there is none.
    """
    programs = {"random": "random", "sequential": "increment"}
    if pattern not in programs:
        raise UsageError(f"KVM guests have no pattern {pattern!r}; choose {' or '.join(programs)}")
    return programs[pattern]


def require_memory(memory_bytes: int) -> None:
    """Raise HostRefusedError unless two guests of *memory_bytes* fit into this host's free memory."""
    available = psutil.virtual_memory().available
    if available < 2 * memory_bytes:
        raise HostRefusedError(
            f"this host has {format_size(available)} of free memory; the demo runs both sides here and needs "
            f"{format_size(2 * memory_bytes)}; give a smaller --memory"
        )


def _merge(report: Report, arrived: Report) -> None:
    """Add to the source's *report* a failure that only the destination knows of."""
    if report.error is None and arrived.error is not None:
        report.status, report.error = arrived.status, arrived.error
    if report.error is None and report.verified is not True:
        report.status = "failed"
        report.error = ErrorReport(
            type="ParmigError", message="the comparison did not find the memories of both sides equal", phase="verify"
        )
