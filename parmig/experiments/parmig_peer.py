# SPDX-License-Identifier: Apache-2.0
"""One migration by the commands ``parmig receive`` and ``parmig send``, on two hosts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import msgspec

from parmig.engine.report import Report
from parmig.errors import LimitExceededError, ParmigError
from parmig.experiments.factors import Factors
from parmig.experiments.free_memory import prepared
from parmig.experiments.hosts import Hosts, end
from parmig.experiments.outcome import Outcome
from parmig.experiments.qemu_machines import qemu_pair
from parmig.ram.traces.trace_file import read_header
from parmig.units import write_duration_ns, write_size

_COMMAND = [sys.executable, "-m", "parmig"]
_KVM_PROGRAMS = {"random": "random", "sequential": "increment"}


def move(hosts: Hosts, factors: Factors, limit_s: float) -> Outcome:
    """Move a guest of *factors* once.

    Raises:
        ParmigError: the migration failed, for the reason that the report has, or took longer than *limit_s*.
    """
    deadline = time.monotonic() + limit_s
    with contextlib.ExitStack() as stack:
        source, destination = _guests(stack, hosts, factors)
        stack.enter_context(prepared(factors.free_memory, factors.memory_bytes))
        before = hosts.processor_s()
        report = _migrate(stack, hosts, factors, source, destination, deadline)
        spent = hosts.processor_s_since(before)
    report.raise_for_status()
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
    )


def _guests(stack: contextlib.ExitStack, hosts: Hosts, factors: Factors) -> tuple[str, str]:
    """What ``--guest`` names, at the source and at the destination."""
    memory, rate = factors.memory_bytes, factors.dirty_rate_bytes_per_s
    if factors.guest == "qemu":
        pair = stack.enter_context(qemu_pair(hosts, factors))
        return tuple(f"qemu:{machine.socket}" for machine in pair)  # type: ignore[return-value]
    if factors.guest == "kvm":
        machine = f"kvm:memory={memory}"
        return f"{machine},rate={rate},program={_KVM_PROGRAMS[factors.pattern]},fill={factors.fill}", machine
    if factors.trace:
        header = read_header(factors.trace)
        memory = max(memory, header.memory_pages * header.page_size_bytes)
        machine = f"synthetic:memory={memory},trace={factors.trace},fill={factors.fill}"
        return machine, machine
    machine = f"synthetic:memory={memory}"
    writes = f"rate={rate},pattern={factors.pattern},touched={factors.touched},fill={factors.fill}"
    return f"{machine},{writes}", f"{machine},touched={factors.touched}"


def _migrate(
    stack: contextlib.ExitStack, hosts: Hosts, factors: Factors, source: str, destination: str, deadline: float
) -> Report:
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="parmig-run-"))
    pairs = list(zip(hosts.source.addresses, hosts.destination.addresses, strict=True))
    receive = ["receive", "--listen", f"tcp://{pairs[0][1]}:0", "--guest", destination, "--json"]
    receive += [] if pairs[0][1].startswith("127.") else ["--insecure"]
    send = ["--guest", source, "--json", "--quiet", *_options(factors)]
    if len(pairs) > 1 or not pairs[0][1].startswith("127."):
        receive += [word for _, here in pairs for word in ("--path", here)]
        send += [word for here, there in pairs for word in ("--path", f"{here}-{there}")]
    for command in (receive, send):
        command += ["--state-dir", str(Path(directory, "records"))]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as errors,
        hosts.destination.running([*_COMMAND, *receive], stdout=pipe, stderr=pipe) as receiver,
    ):
        uri = _listening(receiver)
        with hosts.source.running([*_COMMAND, "send", uri, *send], stdout=pipe, stderr=errors) as sender:
            output = _output(sender, deadline)
            if not output:
                raise ParmigError(f"parmig send ended with exit code {sender.returncode}: {_last_line(errors)}")
            report = msgspec.json.decode(output, type=Report)
        if report.error is not None:
            end(receiver)  # it would wait for the next sender
        answer = _output(receiver, deadline)
        if not answer:
            raise ParmigError(f"parmig receive ended with exit code {receiver.returncode} and without a report")
        arrived = msgspec.json.decode(answer, type=Report)
    if report.error is None and arrived.error is not None:
        report.error = arrived.error
    return report


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
