# SPDX-License-Identifier: Apache-2.0
"""One migration that does not end: whether any of its processes grows.

What is compressed: a guest of 64 MiB writes the same 4 MiB all the time, faster than its workers may send, so a round
takes a tenth of a second. Twenty minutes have as many rounds as half a day of a guest whose rounds take 4 s. Each
minute a link is away for a while, so that channels connect again. parmig by itself would give up after a few rounds
that do not get smaller; here it does not (``ENDLESS`` of :mod:`tools.torture_side`).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias

import psutil

from parmig.experiments.netlab import Line, Link, open_lab
from parmig.experiments.netlab_host import Host
from parmig.units import KIB, MIB
from tools.torture_commands import Side, WrongError, end, listens_at, wait_for
from tools.torture_faults import MARK, family
from tools.torture_side import ENDLESS, RIGHT

GUEST = "checked:memory=64MiB,touched=4MiB,rate=100MiB/s"
OPTIONS = ["--workers", "2", "--max-bandwidth", "40MiB/s", "--downtime-limit", "1us", "--reconnect-timeout", "20s"]
FLAP_EVERY_S, FLAP_FOR_S = 60.0, 2.0

SAMPLES = 20
"""How often the processes are looked at."""

MORE_BYTES, MORE_DESCRIPTORS = 2 * MIB, 0
"""What a process may have more at the end than after a quarter of the time. Malloc and the interpreter keep some."""

ROUND_BYTES = KIB
"""What the source keeps of each round for its report. Without ENDLESS, the policy bounds the number of rounds: each
four must end with 5 % less than the four before."""

SENDER = "send's python"

Sample: TypeAlias = dict[str, tuple[int, int]]
"""Of each process, by its side and name: memory of its own in bytes, and descriptors."""


def soak(minutes: float, directory: Path) -> None:
    """Run one migration for *minutes*, and print a table.

    Raises:
        WrongError: something grew, or the guest was wrong at the end.
    """
    run = f"soak-{os.getpid()}"
    with ExitStack() as opened:
        lab = opened.enter_context(open_lab([Line(100 * MIB), Line(100 * MIB)]))
        here, there = lab.hosts
        listen = ["--listen", f"tcp://{lab.links[0].address(there)}:0", "--insecure"]
        listen += [word for link in lab.links for word in ("--path", link.address(there))]
        receive = _start(opened, there, run, directory, "receive", *listen, "--guest", GUEST.partition(",")[0])
        uri = listens_at(receive)
        paths = [word for link in lab.links for word in ("--path", f"{link.address(here)}-{link.address(there)}")]
        send = _start(opened, here, run, directory, "send", uri, "--guest", GUEST, *OPTIONS, *paths)
        samples = _watch(60 * minutes, run, send, lab.links)
        send.process.send_signal(signal.SIGINT)
        for side in (send, receive):
            wait_for(side, 60)
        output = send.log.read_text()
        rounds = max(map(int, re.findall(r"round (\d+)", output)), default=0)
        print(f"{rounds} rounds, {output.count('connected again')} connections made again")
        if RIGHT not in output:
            raise WrongError(f"the guest is not right at the source:\n{output[-2000:]}")
        if more := growth(samples, rounds):
            raise WrongError(f"grown: {', '.join(more)}")


def _start(opened: ExitStack, host: Host, run: str, directory: Path, name: str, *words: str) -> Side:
    records = directory / name
    records.mkdir(mode=0o700)
    log = directory / f"{name}.log"
    command = host.command(sys.executable, "-m", "tools.torture_side", name, *words, "--state-dir", str(records))
    environment = {**os.environ, MARK: f"{run}/{name}", ENDLESS: "1"}
    with log.open("w") as output:
        side = Side(subprocess.Popen(command, stdout=output, stderr=output, text=True, env=environment), log)
    opened.callback(end, side)
    return side


def _watch(seconds: float, run: str, send: Side, links: list[Link]) -> list[Sample]:
    """Look at the processes again and again, while links go and come back."""
    began = time.monotonic()
    samples: list[Sample] = []
    flaps = 0
    while (passed := time.monotonic() - began) < seconds:
        if send.process.poll() is not None:
            raise WrongError(f"the sender ended:\n{send.log.read_text()[-2000:]}")
        if passed >= len(samples) * seconds / SAMPLES:
            samples.append(sample(run))
            show(passed / 60, samples[-1], samples[-2] if len(samples) > 1 else {})
        if passed >= (flaps + 1) * FLAP_EVERY_S:
            link = links[flaps % len(links)]
            link.cut()
            time.sleep(FLAP_FOR_S)
            link.restore()
            flaps += 1
        time.sleep(0.5)
    samples.append(sample(run))
    show(seconds / 60, samples[-1], samples[-2])
    return samples


def sample(run: str) -> Sample:
    """What each process of *run* has now."""
    now: Sample = {}
    for role, process in family(run):
        with contextlib.suppress(psutil.NoSuchProcess):
            memory = process.memory_info()
            now[role] = (memory.rss - memory.shared, process.num_fds())
    return dict(sorted(now.items()))


def growth(samples: list[Sample], rounds: int) -> list[str]:
    """Who has more after *rounds* at the end than after a quarter of the time, and what."""
    early, last = samples[len(samples) // 4], samples[-1]
    more = []
    for role, (memory_bytes, descriptors) in last.items():
        had_bytes, had = early.get(role, (memory_bytes, descriptors))
        kept_bytes = ROUND_BYTES * rounds if role == SENDER else 0
        if memory_bytes > had_bytes + MORE_BYTES + kept_bytes:
            more.append(f"{role} from {had_bytes // KIB} to {memory_bytes // KIB} KiB")
        if descriptors > had + MORE_DESCRIPTORS:
            more.append(f"{role} from {had} to {descriptors} descriptors")
    return more


def show(minute: float, now: Sample, before: Sample) -> None:
    """Print a line of the table, and who its columns are if they are others than *before*."""
    if now.keys() != before.keys():
        roles = (f"{number}: {role}" for number, role in enumerate(now, 1))
        print("MiB and descriptors of", ", ".join(roles))
    cells = (f"{memory_bytes / MIB:.1f}, {descriptors}" for memory_bytes, descriptors in now.values())
    print(f"{minute:6.1f} min" + "".join(f"{cell:>12}" for cell in cells), flush=True)
