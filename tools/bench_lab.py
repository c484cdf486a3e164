# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: machines, one migration by parmig or by QEMU itself, medians, the host's description."""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from parmig.config import ReceiveConfig, SendConfig
from parmig.engine.destination.receiver import MigrationReceiver
from parmig.engine.reporting.report import DowntimePhases, Report
from parmig.engine.source.sender import MigrationSender
from parmig.experiments.fingerprint import describe_host
from parmig.experiments.free_memory import touch_memory
from parmig.experiments.qemu_migration import qemu_migrate
from parmig.guests.guest import Guest
from tests.qemu.machines import QemuMachine, build_initrd  # the same machines as the tests use

MIB = 1 << 20
_records = tempfile.TemporaryDirectory(prefix="parmig-bench-records-")
os.environ.setdefault("PARMIG_STATE_DIR", _records.name)  # a bench leaves no records of hand-overs on its host

LIMIT_S = 120.0

EnterSide = Callable[[], contextlib.AbstractContextManager[None]]
"""Makes a context; what is started inside it belongs to one side of a move (:mod:`parmig.experiments.sides`)."""

__all__ = [
    "MIB",
    "QemuMachine",
    "await_migration",
    "build_initrd",
    "describe_host",
    "initrd",
    "median",
    "migrate",
    "migrate_by_commands",
    "migrate_guests",
    "phases_median",
    "qemu_migrate",
    "run_benches",
    "touch_memory",
]


@contextlib.contextmanager
def initrd() -> Iterator[Path]:
    """An initrd for the machines, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="parmig-bench-") as directory:
        yield build_initrd(Path(directory))


def fill_random(machine: Any, memory_bytes: int, *, first_byte: int = 0, outside: bool = False) -> None:
    """Fill *memory_bytes* of the guest's memory from *first_byte* on with random data, different in every page.

    It writes through QEMU's own mapping, as a running guest would. *outside* writes to the memory file instead: the
    pages are then in no page table of QEMU's, as those of a guest that was restored from a file by another program.
    """
    block = np.frombuffer(os.urandom(16 * MIB), dtype=np.uint64).reshape(-1, 512).copy()
    path = machine.directory / "ram" if outside else f"/proc/{machine.pid}/mem"
    address = first_byte if outside else machine.host_address(first_byte)
    with open(path, "r+b", buffering=0) as memory:
        for at in range(0, memory_bytes, block.nbytes):
            block[:, 0] = np.arange(at, at + block.nbytes, 4096) + 1
            os.pwrite(memory.fileno(), block.data, address + at)


def median(values: Sequence[float]) -> float:
    """The median; 0 of nothing."""
    return statistics.median(values) if values else 0.0


def phases_median(phases: Sequence[DowntimePhases]) -> dict[str, float]:
    """The median of each phase, in milliseconds."""
    return {
        name: round(median([getattr(pause, name) for pause in phases]), 2) for name in DowntimePhases.__struct_fields__
    }


def migrate_guests(source: Guest, destination: Guest, config: SendConfig, watch: Any = None) -> tuple[Report, Report]:
    """One migration by parmig, both sides in this process; *watch(sender, receiver)* runs meanwhile in a thread."""
    with listen_uri(config.transport) as uri:
        return _migrate_guests(source, destination, config, ReceiveConfig(listen=uri), watch)


@contextlib.contextmanager
def listen_uri(transport: str) -> Iterator[str]:
    """Where a receiver of this host listens for a sender with this ``--transport``."""
    if transport != "unix":
        yield "zmq+tcp://127.0.0.1:0"
        return
    with tempfile.TemporaryDirectory() as directory:
        yield f"unix://{directory}/receiver"


def _migrate_guests(
    source: Guest, destination: Guest, config: SendConfig, receive: ReceiveConfig, watch: Any
) -> tuple[Report, Report]:
    uris: queue.SimpleQueue[str] = queue.SimpleQueue()
    receiver = MigrationReceiver(destination, receive, listening=uris.put)
    arrived: list[Report] = []
    thread = threading.Thread(target=lambda: arrived.append(receiver.receive_loop()))
    thread.start()
    sender = MigrationSender(source, uris.get(timeout=LIMIT_S), config)
    watcher = threading.Thread(target=watch, args=(sender, receiver)) if watch else None
    if watcher:
        watcher.start()
    report = sender.start()
    if report.error is not None:
        receiver.cancel()  # it would wait for the next sender
    thread.join(LIMIT_S)
    if watcher:
        watcher.join(LIMIT_S)
    report.raise_for_status()
    return report, arrived[0]


def migrate(
    source: Any, destination: Any, config: SendConfig, *, options: Sequence[str] = (), touch_bytes: int = 0
) -> Report:
    """One migration between two QEMUs by the commands; as :func:`migrate_by_commands`."""
    guests = f"qemu:{source.socket}", f"qemu:{destination.socket}"
    return migrate_by_commands(*guests, config, *options, touch_bytes=touch_bytes)


def migrate_by_commands(
    source: str,
    destination: str,
    config: SendConfig,
    *options: str,
    touch_bytes: int = 0,
    touch_huge: bool = False,
    enter_source: EnterSide = contextlib.nullcontext,
    enter_destination: EnterSide = contextlib.nullcontext,
) -> Report:
    """One migration between two guests, as ``--guest`` names them: each side a process of its own as on two hosts.

    Of *config* only the number of workers counts; *options* are more of ``parmig send``. Each command is started in
    the context of its side. See :func:`touch_memory` for *touch_bytes* and *touch_huge*.
    """
    parmig = [sys.executable, "-m", "parmig"]
    opened = contextlib.ExitStack()
    listen_at = opened.enter_context(listen_uri("unix" if "unix" in options else ""))
    listen = ["receive", "--listen", listen_at, "--guest", destination, "--json"]
    with enter_destination():
        receiver = subprocess.Popen([*parmig, *listen], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with opened, receiver:
        assert receiver.stderr is not None
        uri = next(line.split()[-1] for line in receiver.stderr if "listening on" in line)
        touch_memory(touch_bytes, huge=touch_huge)
        send = ["send", uri, "--guest", source, "--workers", str(config.workers), "--json", "--quiet", *options]
        with enter_source():
            output = subprocess.run([*parmig, *send], stdout=subprocess.PIPE, check=False, timeout=LIMIT_S).stdout
        report = msgspec.json.decode(output, type=Report)
        if report.error is not None:
            receiver.terminate()  # it would wait for the next sender
        receiver.communicate(timeout=LIMIT_S)
    report.raise_for_status()
    return report


def await_migration(machine: Any) -> dict[str, Any]:
    """Wait until QEMU has migrated, saved or loaded by itself; its last ``query-migrate``."""
    began = time.monotonic()
    while (migration := machine.ask("query-migrate")).get("status") != "completed":
        if migration.get("status") == "failed" or time.monotonic() - began > LIMIT_S:
            raise RuntimeError(f"QEMU's own migration or snapshot: {migration}")
        time.sleep(0.002)
    return dict(migration)


def run_benches(description: str | None, benches: Mapping[str, Callable[..., dict[str, Any]]], **options: int) -> None:
    """The command line of a file of benchmarks: run the chosen ones and print their results.

    Args:
        benches: by name; each takes the values of *options* in their order.
        options: whole numbers with their defaults, such as ``--runs``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="?", default="all", choices=[*benches, "all"])
    for name, default in options.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    results: dict[str, Any] = {"host": describe_host()}
    for name in list(benches) if chosen.bench == "all" else [chosen.bench]:
        results[name] = benches[name](*(getattr(chosen, option) for option in options))
        if not chosen.json:
            print(f"{name}: {to_json(results[name])}", flush=True)
    results["load_average_after"] = [round(load, 2) for load in os.getloadavg()]
    print(to_json(results if chosen.json else {key: results[key] for key in ("host", "load_average_after")}))


def to_json(value: Any) -> str:
    """*value* as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
