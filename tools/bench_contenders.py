# SPDX-License-Identifier: Apache-2.0
"""The contenders of :mod:`tools.bench_peers`: one function each, and the condition that all of them meet.

Each gets a source that was filled anew and a fresh destination. Processor time is counted from the start of the move
until everything that belongs to it has ended: of QEMU both processes, of the bare pairs and iperf3 all processes, of
parmig both commands with their start and their children, and both QEMUs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import NamedTuple

from parmig.config import SendConfig
from parmig.experiments.bare_pair import started_pairs
from parmig.experiments.free_memory import MORE_BYTES, cold_memory
from parmig.experiments.sides import Sides
from parmig.transport.registry import data_transports
from tools.bench_lab import (
    LIMIT_S,
    QemuMachine,
    fill_random,
    migrate_by_commands,
    qemu_migrate,
    touch_memory,
)

CONDITIONS = ("cold", "warm", "populated")
FILLS = ("outside", "guest")
PLACEMENTS = ("free", "pinned")


class Setting(NamedTuple):
    """What a run meets.

    Attributes:
        memory_bytes: of the guest, all of it random.
        condition: of free memory. ``warm``: touched right before the start. ``cold``: the host below this virtual
            machine has taken it back (:mod:`parmig.experiments.free_memory`). ``populated``: the destination has all
            of its memory before the start, so free memory has no part.
        fill: who filled the source: ``guest`` through QEMU's mapping, or ``outside`` through the memory file.
        placement: each side ``free`` or ``pinned`` to a core of its own.
    """

    memory_bytes: int
    condition: str
    fill: str
    placement: str

    @property
    def touch_bytes(self) -> int:
        """How much to touch right before the start."""
        return self.memory_bytes + MORE_BYTES if self.condition == "warm" else 0

    @contextlib.contextmanager
    def free_memory(self) -> Iterator[None]:
        """(cold) Free memory is cold in the context; enter it when all that the run needs has been filled."""
        if self.condition != "cold":
            yield
        else:
            with cold_memory(self.memory_bytes + MORE_BYTES):
                yield


class Outcome(NamedTuple):
    """One run: bytes moved, seconds with and without the set-up, processor seconds of each side if they are known."""

    moved_bytes: int
    whole_s: float
    transfer_s: float
    source_processor_s: float | None
    destination_processor_s: float | None

    @property
    def processor_s(self) -> float | None:
        """Of both sides."""
        if self.source_processor_s is None or self.destination_processor_s is None:
            return None
        return self.source_processor_s + self.destination_processor_s


Contender = Callable[[Setting, Sides, int], Outcome]
"""Moves a guest once; the number is of pairs, streams, channels or workers."""


def run_floor(setting: Setting, sides: Sides, pairs: int, *, placement: str) -> Outcome:
    """Bare pairs carry the guest's memory file into a new one. Their processes run before the time begins."""
    with _filled_source(setting, sides) as source:
        destination = source.directory / "bare"
        with destination.open("wb") as file:
            file.truncate(setting.memory_bytes)
            if setting.condition == "populated":  # UFFDIO_COPY only makes pages
                os.posix_fallocate(file.fileno(), 0, setting.memory_bytes)
                placement = "pwrite"
        with (
            setting.free_memory(),
            started_pairs(
                source.directory / "ram",
                destination,
                pairs,
                placement,
                enter_source=sides.source.entered,
                enter_destination=sides.destination.entered,
            ) as carry,
        ):
            touch_memory(setting.touch_bytes)
            before = sides.processor_s()
            seconds = carry()
        return _outcome(sides, before, setting.memory_bytes, seconds, seconds)


def run_iperf3(setting: Setting, sides: Sides, streams: int) -> Outcome:
    """The network alone: as many bytes as the guest has, which nobody stores. So it needs no guest and no condition."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    before = sides.processor_s()
    listen = ["iperf3", "--server", "--one-off", "--forceflush", "--port", port]
    with sides.destination.entered():
        server = subprocess.Popen(listen, stdout=subprocess.PIPE, text=True)
    with server:
        try:
            assert server.stdout is not None
            next(line for line in server.stdout if "listening" in line)
            send = ["iperf3", "--client", "127.0.0.1", "--port", port, "--parallel", str(streams), "--json"]
            send += ["--bytes", str(setting.memory_bytes)]
            with sides.source.entered():
                answer = subprocess.run(send, stdout=subprocess.PIPE, check=True, timeout=LIMIT_S).stdout
            server.communicate(timeout=LIMIT_S)
        finally:
            server.kill()  # it has ended by itself, unless something failed
    received = json.loads(answer)["end"]["sum_received"]
    return _outcome(sides, before, received["bytes"], received["seconds"], received["seconds"])


def run_qemu(setting: Setting, sides: Sides, channels: int) -> Outcome:
    """QEMU's own migration with *channels* of multifd; ``setup-time`` is what it reports as its set-up."""
    with (
        _filled_source(setting, sides) as source,
        _destination(setting, sides) as destination,
        setting.free_memory(),
    ):
        before = sides.processor_s()
        migration = qemu_migrate(source, destination, channels, touch_bytes=setting.touch_bytes)
        whole_ms = migration["wall_ms"]
        transfer_ms = whole_ms - migration["setup-time"]
        return _outcome(sides, before, setting.memory_bytes, whole_ms / 1000, transfer_ms / 1000)


def run_parmig(setting: Setting, sides: Sides, workers: int, *, transport: str) -> Outcome:
    """A migration by the commands ``parmig receive`` and ``parmig send``."""
    with (
        _filled_source(setting, sides) as source,
        _destination(setting, sides) as destination,
        setting.free_memory(),
    ):
        before = sides.processor_s()
        report = migrate_by_commands(
            f"qemu:{source.socket}",
            f"qemu:{destination.socket}",
            SendConfig(workers=workers),
            *("--transport", transport),
            touch_bytes=setting.touch_bytes,
            enter_source=sides.source.entered,
            enter_destination=sides.destination.entered,
        )
        whole_ms = report.total_time_ms
        transfer_ms = whole_ms - report.setup_time_ms
        return _outcome(sides, before, setting.memory_bytes, whole_ms / 1000, transfer_ms / 1000)


CONTENDERS: dict[str, Contender] = {
    "floor": functools.partial(run_floor, placement="copy"),
    "floor-pwrite": functools.partial(run_floor, placement="pwrite"),
    "iperf3": run_iperf3,
    "qemu": run_qemu,
    **{f"parmig-{name}": functools.partial(run_parmig, transport=name) for name in data_transports() if name != "unix"},
}


def missing(name: str) -> str | None:
    """Why the contender *name* cannot run here, or None."""
    if name == "iperf3" and shutil.which("iperf3") is None:
        return "there is no program iperf3; install the package iperf3"
    return None


@contextlib.contextmanager
def _filled_source(setting: Setting, sides: Sides) -> Iterator[QemuMachine]:
    with _machine(sides.source.entered, QemuMachine(memory_bytes=setting.memory_bytes)) as source:
        fill_random(source, setting.memory_bytes, outside=setting.fill == "outside")
        yield source


@contextlib.contextmanager
def _destination(setting: Setting, sides: Sides) -> Iterator[QemuMachine]:
    memory = None
    if setting.condition == "populated":
        backend = f"memory-backend-file,id=ram0,size={setting.memory_bytes},mem-path={{dir}}/ram,share=on,prealloc=on"
        memory = ["-machine", "pc,memory-backend=ram0", "-object", backend]
    with _machine(
        sides.destination.entered, QemuMachine(memory_bytes=setting.memory_bytes, incoming=True, memory=memory)
    ) as destination:
        yield destination


@contextlib.contextmanager
def _machine(
    enter: Callable[[], contextlib.AbstractContextManager[None]], machine: QemuMachine
) -> Iterator[QemuMachine]:
    """*machine*, started as a process of the side."""
    with contextlib.ExitStack() as stack:
        with enter():
            stack.enter_context(machine)
        yield machine


def _outcome(
    sides: Sides, before: tuple[float | None, float | None], moved_bytes: int, whole_s: float, transfer_s: float
) -> Outcome:
    spent = (
        None if now is None or then is None else now - then
        for now, then in zip(sides.processor_s(), before, strict=True)
    )
    return Outcome(moved_bytes, whole_s, transfer_s, *spent)
