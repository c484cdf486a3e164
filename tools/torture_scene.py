# SPDX-License-Identifier: Apache-2.0
"""Two hosts of the lab with a place for the guest each, a migration between them, and what must be true afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from parmig.engine.records.handover_record import RecordState
from parmig.experiments.netlab import Lab, Line, open_lab
from parmig.experiments.netlab_host import Host
from parmig.units import NS_PER_MS
from tests.qemu.machines import wait_until
from tools.torture_commands import (
    Side,
    WrongError,
    end,
    error_of,
    listens_at,
    record_states,
    recover,
    space_for,
    wait_for,
    wait_for_first_line,
)
from tools.torture_faults import DATA_PORTS, MARK, Faults, Victims, family
from tools.torture_guests import Guests, Place
from tools.torture_plan import FAULTS_WITHIN_S, Plan, draw_plan

RECONNECT_S, SWITCHOVER_S = 5, 8
PORT = 4600
"""Of the control channel; each lab has networks of its own, so that nobody else uses it."""

RECORDS_BYTES = 16 << 20
"""The file system of both sides' records and temporary files."""

END_LIMIT_S = 60.0
"""For both commands to end, once nothing is broken any more: connecting again, twice the switchover, and a margin."""

SETTLE_LIMIT_S = 20.0
"""For the guardian to let the guest run, and for everything to be gone."""

CANCEL_LIMIT_S = 1.0
"""For a command that is cancelled, and to which nothing else happens, to end."""

USAGE = 2
OWNERS = {0: "destination", 1: "source", 3: "source", 6: "destination", 130: "source"}
"""Who runs the guest after ``send`` ended with this exit code. After 4 and 5 that is not known yet."""


@dataclass
class Outcome:
    """How one run ended.

    Attributes:
        exit_codes: of ``send`` and ``receive``; None: killed.
        happened: the faults that found a victim.
        answers_s: how long each cancelled command took to end.
        took_s: until both commands had ended.
        owner: ``source`` or ``destination``; ``nobody``: the monitor of the owner was killed, as with its host.
        recovered: whether ``parmig recover`` was needed.
        error: that ``send`` reported; empty: none.
    """

    exit_codes: dict[str, int | None]
    happened: list[str]
    answers_s: list[float]
    took_s: float
    error: str = ""
    owner: str = ""
    recovered: bool = False

    def __str__(self) -> str:
        codes = ", ".join(f"{side} {'killed' if code is None else code}" for side, code in self.exit_codes.items())
        recovered = ", recovered" if self.recovered else ""
        what = "; ".join(self.happened) or "no fault"
        error = f" ({self.error})" if self.error else ""
        return f"{what}: {codes}, {self.owner} runs{recovered}, {self.took_s:.1f} s{error}"


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
    source: Place | None = None

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()
        self.guests.opened.close()

    def run(self, seed: int) -> Outcome:
        """One migration with faults.

        Raises:
            WrongError: a promise was broken.
        """
        plan = draw_plan(seed, self.guests.rates_bytes_per_s)
        if self.source is None or self.source.state("") != "running":
            self.start_anew()
            self.source = self.guests.source(self.stack)
        with ExitStack() as opened:
            own_space = plan.own_space and self.guests.memory_bytes
            space = opened.enter_context(space_for(self.guests.memory_bytes)) if own_space else None
            incoming = ExitStack()
            opened.callback(incoming.close)
            places = {"source": self.source, "destination": self.guests.destination(incoming, space)}
            delay_ns = NS_PER_MS // 10 if plan.flips else 0
            lab = opened.enter_context(open_lab([Line(rate, delay_ns) for rate in plan.rates_bytes_per_s]))
            records = opened.enter_context(space_for(RECORDS_BYTES))
            run = Run(plan, f"{os.getpid()}-{seed}", lab, places, records, self.directory)
            outcome = run.migrate(Victims(lab, run.name, PORT, places["destination"].monitor, space, records))
            run.check(outcome)
            if outcome.owner == "destination":
                kept = incoming.pop_all()
                if space is not None:
                    kept.push(opened.pop_all())  # the guest's memory lies there
                self.stack.close()
                self.stack, self.source = kept, places["destination"]
        return outcome

    def start_anew(self) -> None:
        """Let the next run begin with a fresh guest."""
        self.stack.close()
        self.stack, self.source = ExitStack(), None


@dataclass
class Run:
    """One migration.

    Args:
        places: ``source`` and ``destination``.
        records: the file system of both sides' records and temporary files.
        directory: for the output of the commands.
    """

    plan: Plan
    name: str
    lab: Lab
    places: dict[str, Place]
    records: Path
    directory: Path
    sides: dict[str, Side] = field(default_factory=dict)

    # -- the migration ----------------------------------------------------------------------------

    def migrate(self, victims: Victims) -> Outcome:
        """Run both commands while the faults happen, until both have ended."""
        (here, there), links, plan = self.lab.hosts, self.lab.links, self.plan
        listen = ["--listen", f"tcp://{links[0].address(there)}:{PORT}", "--insecure", "--wait", "10s"]
        listen += ["--data-ports", f"{PORT + 1}-{PORT + DATA_PORTS}"]
        listen += [word for link in links for word in ("--path", link.address(there))]
        options = ["--workers", str(plan.workers), "--transport", plan.transport, f"--verify={plan.verify}"]
        options += ["--reconnect-timeout", f"{RECONNECT_S}s", "--switchover-timeout", f"{SWITCHOVER_S}s"]
        options += ["--max-downtime", "5s"]
        options += [word for link in links for word in ("--path", f"{link.address(here)}-{link.address(there)}")]
        with ExitStack() as opened:
            receive = self._start(opened, there, "receive", "destination", *listen)
            send = self._start(opened, here, "send", "source", listens_at(receive), *options)
            began = time.monotonic()
            wait_for_first_line(send)
            with Faults(victims, plan.faults) as faults:
                wait_for(send, FAULTS_WITHIN_S + END_LIMIT_S)
                faults.end()
            for side in (send, receive):
                wait_for(side, END_LIMIT_S)
        if faults.errors:
            raise WrongError(f"the torture itself failed: {faults.errors}")
        codes = {"send": send.code(), "receive": receive.code()}
        took_s = time.monotonic() - began
        return Outcome(codes, faults.happened, faults.answers_s, took_s, error_of(send))

    def _start(self, opened: ExitStack, host: Host, name: str, at: str, *words: str) -> Side:
        directory, place = self._records(name), self.places[at]
        directory.mkdir(mode=0o700)
        arguments = (*place.program, name, *words, "--guest", place.guest, "--json", "--state-dir", str(directory))
        log = self.directory / f"{self.name}-{name}"
        temporary = self.records / "temporary"
        temporary.mkdir(exist_ok=True)
        environment = {**os.environ, MARK: f"{self.name}/{name}", "TMPDIR": str(temporary)}
        environment["XDG_RUNTIME_DIR"] = str(self.directory)
        with log.open("w") as output:
            command = host.command(sys.executable, *arguments)
            side = Side(subprocess.Popen(command, stdout=output, stderr=output, text=True, env=environment), log)
        opened.callback(end, side)
        self.sides[at] = side
        return side

    def _records(self, name: str) -> Path:
        return self.records / name

    # -- what must be true afterwards -------------------------------------------------------------

    def check(self, outcome: Outcome) -> None:
        """Find the owner, and look whether everything is as promised.

        Raises:
            WrongError: it is not.
        """
        owner = self._owner()
        if owner is None:
            outcome.recovered = True
            recover(self._records("send"), self._records("receive"))
            owner = self._owner()
        if owner is None:
            self._check_that_its_monitor_died(outcome)
        else:
            self._check_owner(outcome, owner)
        outcome.owner = owner or "nobody"
        wait_until(lambda: not self._left(), f"the end of {self._left()}", SETTLE_LIMIT_S)
        if self.plan.only_cancelled and max(outcome.answers_s, default=0) > CANCEL_LIMIT_S:
            raise WrongError(f"a cancelled command took {max(outcome.answers_s):.2f} s to end\n{self._outputs()}")

    def _left(self) -> list[str]:
        """What the commands left behind on both hosts."""
        left = [role for role, _ in family(self.name)]
        left += [f"process {pid} in host {host.name}" for host in self.lab.hosts for pid in host.processes()]
        left += [path.name for path in (self.records / "temporary").iterdir()]
        for name in ("send", "receive"):
            left += [path.name for path in list(self._records(name).iterdir())[1:]]  # one record may be there
        return left

    def _check_owner(self, outcome: Outcome, owner: str) -> None:
        code = outcome.exit_codes["send"]
        if code == USAGE or (code is not None and code in OWNERS and OWNERS[code] != owner):
            raise WrongError(f"send ended with {code}, and the guest runs at the {owner}:\n{self._output('source')}")
        try:
            self.places[owner].check(self._output(owner))
        except AssertionError as error:
            raise WrongError(f"the guest is wrong at the {owner}: {error}") from error
        self._owner()  # still only one
        wait_until(lambda: not self.places[owner].left(), f"the end of {self.places[owner].left()}", SETTLE_LIMIT_S)

    def _check_that_its_monitor_died(self, outcome: Outcome) -> None:
        """Nobody runs. That is right if the guest's monitor was killed where the records say that the guest belongs."""
        owner = "destination" if record_states(self._records("receive")) == [RecordState.TAKEN] else "source"
        side = {"source": "send", "destination": "receive"}[owner]
        place = self.places[owner]
        killed = any(what.startswith((f"killed {side}'s", f"killed the {owner}'s")) for what in outcome.happened)
        if not killed or self._state(owner) != "gone" or (owner == "source" and place.monitor is not None):
            states = {name: self._state(name) for name in self.places}
            raise WrongError(f"nobody runs: {states}, {outcome}\n{self._outputs()}")

    def _output(self, at: str) -> str:
        return self.sides[at].log.read_text()

    def _outputs(self) -> str:
        return "\n".join(f"{name}: {self._output(name)[-2000:]}" for name in self.places)

    def _state(self, at: str) -> str:
        return self.places[at].state(self._output(at))

    def _owner(self) -> str | None:
        """Who runs the guest; None: nobody, within the limit."""
        deadline = time.monotonic() + SETTLE_LIMIT_S
        while True:
            running = [name for name in self.places if self._state(name) == "running"]
            if len(running) > 1:
                raise WrongError("both run")
            if running:
                return running[0]
            if time.monotonic() > deadline or all(self._state(name) == "gone" for name in self.places):
                return None
            time.sleep(0.05)
