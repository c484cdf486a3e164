# SPDX-License-Identifier: Apache-2.0
"""Two hosts of the lab with a QEMU each, a migration between them, and what must be true when it is over."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from parmig.engine.handover.handover_record import RecordState
from parmig.engine.handover.record_store import RecordStore
from parmig.experiments.netlab import Lab, Line, open_lab
from tests.qemu.machines import QemuMachine, wait_until
from tools.torture_commands import Side, WrongError, end, filled, listens_at, space_for, tail, wait_for
from tools.torture_faults import MARK, Faults, Victims, draw_faults
from tools.torture_guests import Guests

FAULTS_WITHIN_S = 2.8
RECONNECT_S, SWITCHOVER_S = 5, 8

END_LIMIT_S = 60.0
"""For both commands to end, once nothing is broken any more: connecting again, twice the switchover, and a margin."""

SETTLE_LIMIT_S = 20.0
"""For the guardian to let the guest run, and for everything to be gone."""


USAGE = 2
OWNERS = {0: "destination", 1: "source", 3: "source", 6: "destination", 130: "source"}
"""Who runs the guest after ``send`` ended with this exit code. After 4 and 5 that is not known yet."""


@dataclass
class Outcome:
    """How one run ended.

    Attributes:
        exit_codes: of ``send`` and ``receive``; None: killed.
        owner: ``source`` or ``destination``; ``nobody``: the destination's monitor was killed after it had the guest.
        recovered: whether ``parmig recover`` was needed.
        happened: the faults that found a victim.
        took_s: until both commands had ended.
    """

    exit_codes: dict[str, int | None]
    owner: str
    recovered: bool
    happened: list[str]
    took_s: float

    def __str__(self) -> str:
        codes = ", ".join(f"{side} {'killed' if code is None else code}" for side, code in self.exit_codes.items())
        recovered = ", recovered" if self.recovered else ""
        return f"{'; '.join(self.happened) or 'no fault'}: {codes}, {self.owner} runs{recovered}, {self.took_s:.1f} s"


@dataclass
class Scene:
    """Runs migrations, one after the other: whoever has the guest at the end is the next source.

    Args:
        guests: what is moved.
        directory: for logs and records.
    """

    guests: Guests
    directory: Path
    stack: ExitStack = field(default_factory=ExitStack)
    source: QemuMachine | None = None

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()
        self.guests.opened.close()

    # -- one run ----------------------------------------------------------------------------------

    def run(self, seed: int) -> Outcome:
        """One migration with faults.

        Raises:
            WrongError: a promise was broken.
        """
        chance = random.Random(seed)
        source = self._source()
        with ExitStack() as opened:
            may_fill = chance.random() < 0.5 and self.guests.memory_bytes
            space = opened.enter_context(space_for(self.guests.memory_bytes)) if may_fill else None
            incoming = ExitStack()
            opened.callback(incoming.close)
            destination = incoming.enter_context(self.guests.machine(incoming=True, space=space))
            lab = opened.enter_context(
                open_lab([Line(chance.choice(self.guests.rates_bytes_per_s)) for _ in range(chance.randint(1, 3))])
            )
            run = f"{os.getpid()}-{seed}"
            fill = None if space is None else lambda: filled(space)
            victims = Victims(lab, run, psutil.Process(destination.pid), fill)
            records = {side: self.directory / run / side for side in ("send", "receive")}
            outcome = self._migrate(chance, lab, run, records, victims, source, destination)
            self._check(run, records, outcome, source, destination)
            if outcome.owner == "destination":
                kept = incoming.pop_all()
                if space is not None:
                    kept.push(opened.pop_all())  # the guest's memory lies there
                self.stack.close()
                self.stack = kept
                self.source = destination
        return outcome

    def start_anew(self) -> None:
        """Let the next run begin with a fresh guest."""
        self.stack.close()
        self.stack, self.source = ExitStack(), None

    def _source(self) -> QemuMachine:
        """The guest, freshly started if there is none or its monitor is gone."""
        if self.source is None or self.source.process.poll() is not None:
            self.start_anew()
            self.source = self.stack.enter_context(self.guests.machine(incoming=False))
            self.guests.start(self.source)
        return self.source

    def _migrate(
        self,
        chance: random.Random,
        lab: Lab,
        run: str,
        records: dict[str, Path],
        victims: Victims,
        source: QemuMachine,
        destination: QemuMachine,
    ) -> Outcome:
        here, there = lab.hosts
        transport = chance.choice(("tcp", "zmq"))
        paths = [f"{link.address(here)}-{link.address(there)}" for link in lab.links]
        listen = ["--listen", f"tcp://{lab.links[0].address(there)}:0", "--insecure", "--wait", "20s"]
        listen += [word for link in lab.links for word in ("--path", link.address(there))]
        receive = self._start(
            there.command, run, "receive", records, "receive", *listen, "--guest", f"qemu:{destination.socket}"
        )
        began = time.monotonic()
        with ExitStack() as opened:
            opened.callback(end, receive)
            uri = listens_at(receive)
            limits = ["--reconnect-timeout", f"{RECONNECT_S}s", "--switchover-timeout", f"{SWITCHOVER_S}s"]
            options = ["--workers", str(max(len(paths), chance.randint(1, 4))), "--transport", transport, *limits]
            options += ["--max-downtime", "5s", "--verify"]
            options += [word for path in paths for word in ("--path", path)]
            send = self._start(
                here.command, run, "send", records, "send", uri, "--guest", f"qemu:{source.socket}", *options
            )
            opened.callback(end, send)
            with Faults(victims, draw_faults(chance, FAULTS_WITHIN_S)) as faults:
                wait_for(send, FAULTS_WITHIN_S + 60)
                faults.end()
            for side in (send, receive):
                wait_for(side, END_LIMIT_S)
        if faults.errors:
            raise WrongError(f"the torture itself failed: {faults.errors}")
        codes = {"send": send.code(), "receive": receive.code()}
        return Outcome(codes, "", False, faults.happened, time.monotonic() - began)

    def _start(self, within: Any, run: str, side: str, records: dict[str, Path], *words: str) -> Side:
        directory = records[side]
        directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        log = directory / "output"
        command = within(sys.executable, "-m", "parmig", *words, "--json", "--state-dir", str(directory / "records"))
        environment = {**os.environ, MARK: f"{run}/{side}"}
        with log.open("w") as output:
            return Side(subprocess.Popen(command, stdout=output, stderr=output, text=True, env=environment), log)

    # -- what must be true afterwards -------------------------------------------------------------

    def _check(
        self, run: str, records: dict[str, Path], outcome: Outcome, source: QemuMachine, destination: QemuMachine
    ) -> None:
        machines = {"source": source, "destination": destination}
        owner = _owner(machines, SETTLE_LIMIT_S)
        if owner is None:
            outcome.recovered = True
            self._recover(records)
            owner = _owner(machines, SETTLE_LIMIT_S)
        if owner is None and _died_with_its_monitor(destination, records["receive"]):
            outcome.owner = "nobody"  # as a host that loses power; the source must not run an older guest
            if _state(source) == "running":
                raise WrongError("the source runs a guest that the destination had taken")
            self.start_anew()
            return
        if owner is None:
            output = "\n".join(tail(directory) for directory in records.values())
            raise WrongError(f"nobody runs: {_states(machines)}, {outcome}\n{output}")
        outcome.owner = owner
        code = outcome.exit_codes["send"]
        if code == USAGE or (code is not None and code in OWNERS and OWNERS[code] != owner):
            raise WrongError(f"send ended with {code}, and the guest runs at the {owner}:\n{tail(records['send'])}")
        try:
            self.guests.check(machines[owner])
        except AssertionError as error:
            raise WrongError(f"the guest is wrong at the {owner}: {error}") from error
        other = machines["destination" if owner == "source" else "source"]
        if _state(other) == "running":
            raise WrongError("both run")
        left = Victims(lab=None, run=run).family  # type: ignore[arg-type]
        wait_until(lambda: not left(), SETTLE_LIMIT_S, f"the end of {left()}")
        if machines[owner].tracked_mappings():
            raise WrongError("the guest's memory is still tracked")

    def _recover(self, records: dict[str, Path]) -> None:
        """What an operator does: see to both hosts."""
        words = [sys.executable, "-m", "parmig", "recover", "--json", "--wait", "5s", "--state-dir"]
        with ExitStack() as opened:
            listen = ["--listen", "tcp://127.0.0.1:0"]
            there = subprocess.Popen(
                [*words, str(records["receive"] / "records"), *listen], stderr=subprocess.PIPE, text=True
            )
            opened.callback(there.wait)
            opened.callback(there.kill)
            assert there.stderr is not None
            uri = next((line.split()[-1] for line in there.stderr if "listening on" in line), "")
            peer = ["--peer", uri] if uri else []
            subprocess.run([*words, str(records["send"] / "records"), *peer], check=False, timeout=60)


def _state(machine: QemuMachine) -> str:
    if machine.process.poll() is not None:
        return "gone"
    return str(machine.ask("query-status")["status"])


def _states(machines: dict[str, QemuMachine]) -> dict[str, str]:
    return {name: _state(machine) for name, machine in machines.items()}


def _died_with_its_monitor(destination: QemuMachine, directory: Path) -> bool:
    """Whether the destination had the guest for good, and its monitor was killed then."""
    if destination.process.poll() is None:
        return False
    with RecordStore(str(directory / "records")) as store:
        states = [entry.record.state for entry in store.entries() if entry.record is not None]
    return states == [RecordState.TAKEN]


def _owner(machines: dict[str, QemuMachine], limit_s: float) -> str | None:
    """Who runs the guest; None: nobody, within the limit."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        running = [name for name, state in _states(machines).items() if state == "running"]
        if len(running) > 1:
            raise WrongError("both run")
        if running:
            return running[0]
        time.sleep(0.05)
    return None
