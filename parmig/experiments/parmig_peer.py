# SPDX-License-Identifier: Apache-2.0
"""One migration by the commands ``parmig receive`` and ``parmig send``, on two hosts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

import msgspec

from parmig.engine.reporting.report import Report
from parmig.errors import LimitExceededError, ParmigError
from parmig.experiments.factors import Factors
from parmig.experiments.free_memory import prepared
from parmig.experiments.hosts import Host, Hosts, Spent, end
from parmig.experiments.outcome import Outcome
from parmig.experiments.qemu_machines import destination_machine, source_machine
from parmig.ram.traces.trace_file import read_header
from parmig.units import write_duration_ns, write_size

_COMMAND = [sys.executable, "-m", "parmig"]
Pairs = Sequence[tuple[str, str]]
"""Addresses of the source and of the destination, one pair for each path."""

_HEAD_START = "head-start=300ms"
"""As long the guest runs before it is moved: 60 samples of its speed."""

_KVM_PROGRAMS = {"random": "random", "sequential": "increment"}


def move(hosts: Hosts, factors: Factors, limit_s: float) -> Outcome:
    """Move a guest of *factors* once.

    Raises:
        ParmigError: the migration failed, for the reason that the report has, or took longer than *limit_s*.
    """
    deadline = time.monotonic() + limit_s
    pairs = list(zip(hosts.source.addresses, hosts.destination.addresses, strict=True))
    with contextlib.ExitStack() as stack:
        source = source_guest(stack, hosts.source, factors)
        destination = destination_guest(stack, hosts.destination, factors)
        stack.enter_context(prepared(factors.free_memory, factors.memory_bytes))
        before = hosts.processor_s()
        with receiving(hosts.destination, destination, pairs) as receiver:
            report = send(hosts.source, factors, source, receiver.uri, pairs, deadline)
            if report.error is not None:
                end(receiver.command)  # it would wait for the next sender
            arrived = receiver.report(deadline)
        spent = hosts.processor_s_since(before)
    return outcome_of(report, arrived, spent)


def outcome_of(report: Report, arrived: Report, spent: Spent) -> Outcome:
    """What a move gave.

    Args:
        report: of the source.
        arrived: the report of the destination.

    Raises:
        ParmigError: one of them has an error.
    """
    report.raise_for_status()
    arrived.raise_for_status()
    return Outcome(
        moved_bytes=report.ram.total_bytes,
        total_time_ms=report.total_time_ms,
        setup_time_ms=report.setup_time_ms,
        downtime_ms=report.downtime_ms,
        wire_bytes=report.ram.wire_bytes,
        source_processor_s=spent.source_s,
        destination_processor_s=spent.destination_s,
        processor_s=spent.both_s,
        report=msgspec.to_builtins(report),
        **felt(report, arrived),
    )


def felt(report: Report, arrived: Report) -> dict[str, float | None]:
    """What the guest felt of a move, as fields of :class:`.Outcome`; nothing if it does not count."""
    here, there = report.guest_speed, arrived.guest_speed
    if here is None:
        return {}
    stalls = (here.longest_stall_ms, report.downtime_ms, there.longest_stall_ms if there else None)
    return {
        "guest_before_bytes_per_s": here.before_bytes_per_s,
        "guest_setup_bytes_per_s": here.setup_bytes_per_s,
        "guest_rounds_bytes_per_s": here.rounds_bytes_per_s,
        "guest_after_bytes_per_s": there.after_bytes_per_s if there else None,
        "guest_slow_down_percent": here.slow_down_percent,
        "guest_longest_stall_ms": max(stall_ms for stall_ms in (0.0, *stalls) if stall_ms is not None),
    }


def source_guest(stack: contextlib.ExitStack, host: Host, factors: Factors) -> str:
    """What ``--guest`` names at the source; what it needs is there until *stack* is left."""
    if factors.guest == "qemu":
        return f"qemu:{stack.enter_context(source_machine(host, factors)).socket}"
    rate, fill = factors.dirty_rate_bytes_per_s, factors.fill
    machine = f"{factors.guest}:memory={factors.memory_bytes}"
    if factors.guest == "kvm":
        return f"{machine},rate={rate},program={_KVM_PROGRAMS[factors.pattern]},fill={fill},{_HEAD_START}"
    if factors.trace:
        return f"{_replaying(factors)},fill={fill},{_HEAD_START}"
    return f"{machine},rate={rate},pattern={factors.pattern},touched={factors.touched},fill={fill},{_HEAD_START}"


def destination_guest(stack: contextlib.ExitStack, host: Host, factors: Factors) -> str:
    """The same at the destination."""
    if factors.guest == "qemu":
        return f"qemu:{stack.enter_context(destination_machine(host, factors)).socket}"
    if factors.guest == "synthetic" and factors.trace:
        return _replaying(factors)
    machine = f"{factors.guest}:memory={factors.memory_bytes}"
    return machine if factors.guest == "kvm" else f"{machine},touched={factors.touched}"


def _replaying(factors: Factors) -> str:
    """A guest that replays the trace, with at least the memory of that."""
    header = read_header(factors.trace)
    memory_bytes = max(factors.memory_bytes, header.memory_pages * header.page_size_bytes)
    return f"synthetic:memory={memory_bytes},trace={factors.trace}"


class Receiver(NamedTuple):
    """A ``parmig receive`` that listens at *uri*."""

    command: subprocess.Popen[str]
    uri: str

    def report(self, deadline: float) -> Report:
        """Its report, once it has ended.

        Raises:
            ParmigError: it has none, or did not end until *deadline*.
        """
        answer = _output(self.command, deadline)
        if not answer:
            raise ParmigError(f"parmig receive ended with exit code {self.command.returncode} and without a report")
        return msgspec.json.decode(answer, type=Report)


@contextlib.contextmanager
def receiving(host: Host, guest: str, pairs: Pairs) -> Iterator[Receiver]:
    """A ``parmig receive`` on *host*, which has ended after the context.

    Args:
        pairs: addresses of the source and of the destination, one pair for each path.

    Raises:
        ParmigError: it ended instead of listening.
    """
    argv = ["receive", "--listen", f"tcp://{pairs[0][1]}:0", "--guest", guest, "--json"]
    argv += [] if pairs[0][1].startswith("127.") else ["--insecure"]
    argv += [word for _, there in _paths(pairs) for word in ("--path", there)]
    with (
        tempfile.TemporaryDirectory(prefix="parmig-run-") as records,
        host.running(
            [*_COMMAND, *argv, "--state-dir", records], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as command,
    ):
        yield Receiver(command, _listening(command))


def send(host: Host, factors: Factors, guest: str, uri: str, pairs: Pairs, deadline: float) -> Report:
    """Run ``parmig send`` on *host*; its report, which may have an error.

    Raises:
        ParmigError: it has no report, or did not end until *deadline*.
    """
    argv = ["send", uri, "--guest", guest, "--json", "--quiet", *_options(factors)]
    argv += [word for here, there in _paths(pairs) for word in ("--path", f"{here}-{there}")]
    with (
        tempfile.TemporaryDirectory(prefix="parmig-run-") as records,
        tempfile.TemporaryFile() as errors,
        host.running([*_COMMAND, *argv, "--state-dir", records], stdout=subprocess.PIPE, stderr=errors) as sender,
    ):
        output = _output(sender, deadline)
        if not output:
            raise ParmigError(f"parmig send ended with exit code {sender.returncode}: {_last_line(errors)}")
        return msgspec.json.decode(output, type=Report)


def _paths(pairs: Pairs) -> Pairs:
    """The *pairs* that must be named; a single one of loopback need not be."""
    return pairs if len(pairs) > 1 or not pairs[0][1].startswith("127.") else []


def _options(factors: Factors) -> list[str]:
    options = ["--workers", str(factors.workers), "--transport", factors.transport, "--compress", factors.compress]
    options += ["--tracker", factors.tracker, "--batch", write_size(factors.batch_bytes)]
    options += ["--downtime-limit", write_duration_ns(factors.downtime_limit_ns)]
    options += ["--max-downtime", write_duration_ns(factors.max_downtime_ns)]
    return [*options, *(["--auto-converge"] if factors.auto_converge else [])]


def _listening(receiver: subprocess.Popen[str]) -> str:
    """Where the receiver listens."""
    last = ""
    for line in receiver.stderr or ():
        if "listening on" in line:
            return line.split()[-1]
        last = line.strip() or last
    raise ParmigError(f"parmig receive ended with exit code {receiver.wait()}: {last}")


def _output(command: subprocess.Popen[str], deadline: float) -> str:
    """All that a command prints, once it has ended."""
    try:
        return command.communicate(timeout=max(0.0, deadline - time.monotonic()))[0]
    except subprocess.TimeoutExpired as error:
        raise LimitExceededError("the run did not end within its limit; give a longer run-limit") from error


def _last_line(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_SET)
    return file.read().decode(errors="replace").strip().rpartition("\n")[2] or "without a message"
