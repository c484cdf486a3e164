# SPDX-License-Identifier: Apache-2.0
"""Migrations under faults: afterwards exactly one side runs, its memory is right, and nothing is left.

usage: python -m tools.torture [--guests KIND] [--runs 20] [--seed 1] [--only NUMBER] [--minutes 60]
       python -m tools.torture --soak 20

Each run moves a guest between two hosts of the network lab. ``synthetic``: parmig's own guest. ``kvm``: a QEMU under
KVM whose two virtual CPUs write all the time. ``disk``: an emulated Linux that reads a slow disk by direct I/O. All can
tell whether they are right. One to three faults happen at random times: any process killed or stopped, a link cut,
blackholed, slowed or flapping, a byte changed in flight, a file system full (of the destination's memory, or of records
and temporary files), the destination's monitor killed, a command cancelled. What neither command could settle is
settled by ``parmig recover``. The faults and all choices follow from the seed, so ``--seed S --only N`` repeats a run.

With ``--soak``, one migration goes on for that many minutes, and no process may grow (:mod:`tools.torture_soak`).

All need root; ``kvm`` needs QEMU and /dev/kvm, and ``disk`` QEMU and a Linux kernel with its modules.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tools.torture_commands import WrongError
from tools.torture_guests import KINDS
from tools.torture_scene import Outcome, Scene
from tools.torture_soak import soak

SEED_STEP = 1_000_003
"""The seed of run N is ``seed * SEED_STEP + N``."""


def table(outcomes: list[Outcome]) -> str:
    """How often each kind of fault met which end."""
    ends = Counter(
        (what.split(" at ")[0], f"send {outcome.exit_codes['send']}", outcome.owner)
        for outcome in outcomes
        for what in outcome.happened or ["nothing"]
    )
    lines = [f"{'fault':44} {'exit code':12} {'owner':12} runs"]
    return "\n".join(
        lines + [f"{fault:44} {code:12} {owner:12} {count}" for (fault, code, owner), count in sorted(ends.items())]
    )


def main() -> None:
    """Run them, and end with 1 if any broke a promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", choices=KINDS, default="kvm")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="only this run")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no run after this time")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="one migration of this length in place of runs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left then, either
    if options.soak:
        with tempfile.TemporaryDirectory(prefix="parmig-torture-") as directory:
            soak(options.soak, Path(directory))
        return
    numbers = range(options.runs) if options.only is None else [options.only]
    ends = time.monotonic() + 60 * options.minutes
    outcomes: list[Outcome] = []
    wrong: list[int] = []
    with (
        tempfile.TemporaryDirectory(prefix="parmig-torture-") as directory,
        Scene(KINDS[options.guests](), Path(directory)) as scene,
    ):
        for number in numbers:
            if time.monotonic() > ends:
                break
            try:
                outcome = scene.run(options.seed * SEED_STEP + number)
            except (WrongError, AssertionError) as error:
                wrong.append(number)
                print(f"run {number} WRONG: {error}", flush=True)
                scene.start_anew()
                continue
            outcomes.append(outcome)
            print(f"run {number}: {outcome}", flush=True)
    print(table(outcomes))
    answers = sorted(answer for outcome in outcomes for answer in outcome.answers_s)
    print(f"cancelled commands: {len(answers)}, slowest to end {max(answers, default=0):.2f} s")
    print(f"slowest run {max((outcome.took_s for outcome in outcomes), default=0):.1f} s")
    print(f"{len(outcomes)} of {len(outcomes) + len(wrong)} right, seed {options.seed}, wrong: {wrong or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
